"""DeepSpeed's configuration, made from the recipe's `engine` section.

DeepSpeed 0.19.8 refuses some keys found in published configurations (elasticity, amp, mics_shard_size ...); here every
key is a typed field, so none of them can be set.
"""

import os
from typing import Any

import torch

from training.config import EngineConfig

if not torch.cuda.is_available():
    # Before DeepSpeed's import, which otherwise probes for accelerators and warns.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def deepspeed_settings(config: EngineConfig, accumulation: int, largest: int | None = None) -> dict[str, Any]:
    """DeepSpeed's configuration; `accumulation` micro-batches per rank and step, `largest`: elements of a tensor."""
    zero: dict[str, Any] = {"stage": config.stage, "reduce_bucket_size": config.reduce_bucket}
    on_host = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if config.offload_optimizer:
        zero["offload_optimizer"] = on_host
    if config.stage == 3:
        zero |= {
            "memory_efficient_linear": False,  # its own linear rounds differently from torch under autocast
            "stage3_gather_16bit_weights_on_model_save": False,
            "stage3_prefetch_bucket_size": config.prefetch_bucket,
            "stage3_max_live_parameters": config.live_parameters,
            "stage3_param_persistence_threshold": config.persistent_below,
        }
        if largest is not None and largest <= config.persistent_below:
            # Every tensor stays whole, so none is released, and the search for its next use, quadratic in the number of
            # modules, finds nothing: a third of the CPU time of a step of the miniature.
            zero["stage3_max_reuse_distance"] = 0
        if config.hpz_ranks > 1:
            zero["zero_hpz_partition_size"] = config.hpz_ranks
        if config.offload_parameters:
            zero["offload_param"] = on_host
    return {
        "train_micro_batch_size_per_gpu": 1,  # one micro-batch, however many samples it holds
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip if config.stage > 0 else 0.0,  # at stage 0 we clip, and see the norm
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
