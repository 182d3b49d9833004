"""Judges of picture, speech and synchrony, shared by curation and evaluation."""
