"""The transformer with packed audio, its adapter and its caches."""
