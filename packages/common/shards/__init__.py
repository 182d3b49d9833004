"""Webdataset shards of latents: samples, index, window reads, removal."""
