"""Judges of image, speech and synchrony, shared by curation and evaluation."""
