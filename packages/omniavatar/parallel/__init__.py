"""Several GPUs for one video: sequence parallelism, sharding, block offload."""
