"""Faces: detection, identity, tracks."""
