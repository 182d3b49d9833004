"""Latents job: kept clips in, shards with the outputs of the frozen encoders out."""
