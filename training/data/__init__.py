"""Training data: buckets, windows, order of samples, phases."""
