"""Training of the tiny model of each role, from drawn data."""
