"""Videos from files, lists and held-out clips."""
