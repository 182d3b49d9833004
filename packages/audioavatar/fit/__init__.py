"""Fit of an avatar to video clips: which motion of its particles shows what the clip shows."""
