"""Sweeps: one training per row, one table at the end."""
