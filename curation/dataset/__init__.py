"""The data set over time: versions, rebuilding, takedown."""
