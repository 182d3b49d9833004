"""The system of the paper: an audio-driven Wan2.1 video model, its frozen encoders, its files and its sampler."""
