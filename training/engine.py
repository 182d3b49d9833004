"""DeepSpeed, and nothing else in the project knows it: ZeRO stages 0 to 3 on one CPU process or on many GPUs.

The facts behind the settings (no compiler on CPU, mixed precision, small checkpoints) are in README.md.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before the import: otherwise DeepSpeed searches, and warns

import deepspeed
import torch.distributed as dist
from deepspeed.runtime.zero.partition_parameters import GatheredParameters

KEPT_IN_FP32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")  # diffusers' list for Wan


@dataclass(frozen=True)
class EngineConfig:
    """How the model is sharded and in which precision it runs."""

    stage: Literal[0, 1, 2, 3] = 3
    autocast: Literal["none", "bf16"] = "none"
    frozen_dtype: Literal["fp32", "bf16"] = "fp32"
    clip: float = 1.0  # largest norm of the gradient
    threads: int = 1  # CPU threads of each process


@dataclass(frozen=True)
class StepResult:
    """Norm of the gradient before clipping; `skipped` when it was not finite and the weights were left alone."""

    grad_norm: float
    skipped: bool


class Engine:
    """A model under DeepSpeed; a step is `micro_batches` forward and backward passes, over all ranks together.

    Every method is called by all ranks. Raises ValueError when the micro-batches cannot be dealt evenly.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: int, config: EngineConfig):
        self.config = config
        self.world = dist.get_world_size()
        if micro_batches % self.world:
            raise ValueError(
                f"data.micro_batches is {micro_batches}; expected a multiple of the number of ranks, {self.world}"
            )
        self.rank = dist.get_rank()
        self.device = _device()
        settings = deepspeed_settings(config, micro_batches // self.world)
        trained = [p for p in model.parameters() if p.requires_grad]
        self._ds, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, model_parameters=trained, config=settings, dist_init_required=False
        )
        self.module: nn.Module = self._ds.module

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None, audio: Tensor | None
    ) -> Tensor:
        """The model's forward pass, under the configured autocast."""
        with self._autocast():
            return self._ds(latents, timestep, text, condition, audio)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss; averaged over ranks and accumulation."""
        self._ds.backward(loss)

    def step(self, lr: float) -> StepResult:
        """One optimizer step at learning rate `lr`; call after every micro-batch, acts on the last of the step."""
        for group in self._ds.optimizer.param_groups:
            group["lr"] = lr
        if self.config.stage > 0:
            skipped_before = self._ds.skipped_steps
            self._ds.step()
            norm = self._ds.get_global_grad_norm()
            return StepResult(float(norm if norm is not None else 0.0), self._ds.skipped_steps > skipped_before)
        if not self._ds.is_gradient_accumulation_boundary():
            self._ds.step()
            return StepResult(0.0, False)
        return self._plain_step()

    def _plain_step(self) -> StepResult:
        """Stage 0 in fp32 does not check the gradient itself; AdamW stands still when there is none."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        norm = float(nn.utils.clip_grad_norm_(trained, self.config.clip))
        finite = norm < float("inf")
        if not finite:
            self._ds.zero_grad()
            for parameter in trained:
                parameter.grad = None
        self._ds.step()
        return StepResult(norm, not finite)

    def from_first_rank(self, *values: float) -> list[float]:
        """The first rank's numbers, on every rank: decisions that depend on the clock must be the same everywhere."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return shared.tolist()

    def total(self, *values: float) -> list[float]:
        """Sums over the ranks."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return shared.tolist()

    def wait(self) -> None:
        """Return when every rank has come here."""
        if self.world > 1:
            dist.barrier()

    def trained_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and whole value (on CPU) of every trained parameter, gathered one at a time."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                with self.gathered([parameter]):
                    yield name, parameter.detach().cpu().clone()

    def gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
        """A context in which sharded parameters are whole."""
        return GatheredParameters(parameters) if self.config.stage == 3 else nullcontext()

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write weights trained here, optimizer and `state` below folder/tag; frozen weights stay out."""
        self._ds.save_checkpoint(
            str(folder), tag, client_state=state, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Continue from what `save` wrote, at the same number of ranks; the saved `state` comes back."""
        _, state = self._ds.load_checkpoint(str(folder), tag, load_module_strict=False)
        return state

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast == "none":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def join_group(threads: int) -> None:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; alone when they are absent.

    Once per process: DeepSpeed keeps the group for good, later calls find it.

    Quietens what DeepSpeed 0.19.8 says at every start, and two warnings torch 2.13 gives at each of its collectives.
    """
    torch.set_num_threads(threads)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for replaced in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{replaced}.*", category=FutureWarning)
    # ZeRO never uses this op, and without a compiler its build would end the run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")
    if "RANK" not in os.environ and not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def leave_group() -> None:
    """Take the process group down; the last thing a process does with it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def cast_frozen(model: nn.Module, dtype: Literal["fp32", "bf16"]) -> None:
    """Frozen weights to `dtype` (bf16 spares diffusers' fp32 list); trained weights to fp32, their own master copy."""
    for name, parameter in model.named_parameters():
        half = dtype == "bf16" and not parameter.requires_grad and not any(part in name for part in KEPT_IN_FP32)
        parameter.data = parameter.data.to(torch.bfloat16 if half else torch.float32)


def deepspeed_settings(config: EngineConfig, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration; `accumulation` micro-batches per rank and step."""
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # one micro-batch, however many samples it holds
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.clip if config.stage > 0 else 0.0,  # at stage 0 we clip, and see the norm
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": config.stage},
    }
    if config.stage == 3:
        settings["zero_optimization"] |= {
            "memory_efficient_linear": False,  # its own linear rounds differently from torch under autocast
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    return settings


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")
