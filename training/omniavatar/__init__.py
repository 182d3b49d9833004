"""What is specific to OmniAvatar: model, objective, validation, export."""
