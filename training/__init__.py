"""Shards in, checkpoints out: the trainer of the avatar model. Start reading at `train.py`."""
