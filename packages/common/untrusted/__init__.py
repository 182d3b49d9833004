"""Readers of what strangers wrote: lists, JSON sidecars, addresses, names for a terminal."""
