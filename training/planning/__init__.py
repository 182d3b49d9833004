"""Cost of a training: FLOPs, memory, time, before it is started."""
