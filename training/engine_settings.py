"""What a recipe says about the engine, and the same in DeepSpeed's words.

DeepSpeed 0.19.8 refuses some keys that recipes on the web hold (elasticity, amp, mics_shard_size ...); here every key
is a typed field, so none of them can be asked for.
"""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed's import: otherwise it searches, and warns


@dataclass(frozen=True)
class EngineConfig:
    """How the model is sharded and in which precision it runs.

    `sequence_parallel`: so many neighbouring ranks hold each sample together, tokens divided by it; for samples that
    are too long for one. `build`: "sharded" builds a frozen base that no rank ever holds whole, at stage 3; "auto" does
    where a base of 8 GB or more is loaded by several ranks. `hpz_ranks` (stage 3): so many neighbouring ranks, those of
    one machine, hold the weights once more among them, and gather from there instead of over the network.
    `offload_parameters` (stage 3), `offload_optimizer` (1 to 3): shards, or moments and master copy, wait in the memory
    of the host. The buckets and limits count elements and change speed and memory, not results.
    """

    stage: Literal[0, 1, 2, 3] = 3
    autocast: Literal["none", "bf16"] = "none"
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    clip: float = 1.0  # largest norm of the gradient
    threads: int = 1  # CPU threads of each process
    sequence_parallel: int = 1
    build: Literal["auto", "whole", "sharded"] = "auto"
    hpz_ranks: int = 1
    offload_parameters: bool = False
    offload_optimizer: bool = False
    reduce_bucket: int = 50_000_000  # gradients reduced at a time; a LoRA of 14B has 600 million of them in all
    prefetch_bucket: int = 50_000_000  # stage 3: weights gathered ahead of their use
    live_parameters: int = 1_000_000_000  # stage 3: gathered weights kept for the next use
    persistent_below: int = 100_000  # stage 3: smaller tensors are whole on every rank
    collective_timeout: float = (
        3600.0  # seconds a rank waits for others; above survive.stuck_seconds, which says for whom
    )

    def __post_init__(self) -> None:
        for name in ("sequence_parallel", "hpz_ranks", "reduce_bucket"):
            if getattr(self, name) < 1:
                raise ValueError(f"engine.{name} is {getattr(self, name)}; expected at least 1")
        needs = {"build": self.build == "sharded", "hpz_ranks": self.hpz_ranks > 1}
        needs["offload_parameters"] = self.offload_parameters
        for name, asked in needs.items():
            if asked and self.stage < 3:
                raise ValueError(f"engine.{name} is {getattr(self, name)} at stage {self.stage}; it needs stage 3")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("engine.offload_optimizer is True at stage 0; it needs stage 1, 2 or 3")


# Where and how fast, but not what: a training goes on when these change.
WITHOUT_EFFECT = (
    "threads",
    "sequence_parallel",
    "build",
    "hpz_ranks",
    "offload_parameters",
    "offload_optimizer",
    "reduce_bucket",
    "prefetch_bucket",
    "live_parameters",
    "persistent_below",
    "collective_timeout",
)


def deepspeed_settings(config: EngineConfig, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration; `accumulation` micro-batches per rank and step."""
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
