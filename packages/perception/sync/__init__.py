"""Lips and audio: SyncNet, active speaker, lip motion."""
