"""Rehearsal of a recipe on random weights of the published shapes: what it costs, before anything is fetched."""
