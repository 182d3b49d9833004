"""DeepSpeed ZeRO: settings, sharded initialisation, optimizer, checkpoints for another number of ranks."""
