"""Checkpoints in the published formats: names, shapes, LoRA files."""
