"""Training of OmniAvatar: model, objective, validation, export."""
