"""Speech, music and loudness of a clip."""
