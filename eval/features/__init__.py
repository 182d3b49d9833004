"""What networks and signal processing see in a video, stored once per clip."""
