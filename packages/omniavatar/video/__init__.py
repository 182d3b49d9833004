"""Long videos: inputs, chunks, sampling, joins, the finished file."""
