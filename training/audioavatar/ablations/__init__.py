"""Ablations of the second system on the small world: rows, what they share, their report."""
