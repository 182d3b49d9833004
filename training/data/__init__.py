"""What is trained, in which order: buckets, windows, phases."""
