"""A process among others: lock of a run folder, stop signals, switches that keep libraries offline."""
