"""Decisions over stored scores: thresholds, duplicates, splits, yield."""
