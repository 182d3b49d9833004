"""Readers of what strangers wrote: lists, JSON sidecars, addresses, weight files, names for a terminal."""
