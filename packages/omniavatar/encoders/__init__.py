"""VAE, text encoder and audio encoder."""
