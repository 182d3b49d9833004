"""Kept clips in, shards out: everything the frozen encoders can say about a clip, computed once."""
