"""Launchers for this machine and for Ray, process-level duties of a rank, hang detection."""
