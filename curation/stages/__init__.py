"""Stages: each adds fields to a source or clip row."""
