"""Builders of the canonical avatar: analytic, and from one picture."""
