"""Videos in, measured table and report out."""
