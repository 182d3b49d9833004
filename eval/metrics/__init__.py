"""Metrics as pure functions of features, frames and audio."""
