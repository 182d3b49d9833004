"""Training of the second system: teacher videos, fits, motion from audio."""
