"""Q-Align: image quality and aesthetics."""
