"""How a video is sampled: every setting in one place, and three sets of them by name."""
