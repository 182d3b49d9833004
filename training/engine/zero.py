"""DeepSpeed engine: ZeRO stages 0 to 3 on one CPU process or on many GPUs; only training/engine imports DeepSpeed.

The reasons for the settings (no compiler on CPU, mixed precision, small checkpoints) are in README.md.
"""

import copy
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import InputError
from omniavatar.model.attention import NATIVE, choose_attention
from omniavatar.model.compiled import compile_blocks
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.parallel.sequence import SequenceGroup
from training.config import EngineConfig
from training.engine.optimizer import set_kernel
from training.engine.pickles import refuse_code
from training.engine.settings import deepspeed_settings
from training.engine.sharded_init import gathered

# isort: split
import deepspeed
from deepspeed.utils import set_z3_leaf_modules


@dataclass(frozen=True)
class StepResult:
    """Norm of the gradient before clipping; `skipped` when it was not finite and the weights did not change."""

    grad_norm: float
    skipped: bool


class Engine:
    """A model under DeepSpeed; a step is `micro_batches` forward and backward passes, over all ranks together.

    Ranks that hold each sample together (`sequence_parallel`) are one for the data: they read the same micro-batches,
    those of `data_rank` out of `data_world`. Every method is called by all ranks. Raises ValueError when ranks,
    micro-batches or attention heads cannot be dealt evenly.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: int, config: EngineConfig):
        self.config = config
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        together = config.sequence_parallel
        if self.world % together:
            raise InputError(f"engine.sequence_parallel is {together}; expected a divisor of the {self.world} ranks")
        self.data_rank, self.data_world = self.rank // together, self.world // together
        if micro_batches % self.data_world:
            groups = f" by engine.sequence_parallel {together}" if together > 1 else ""
            raise InputError(
                f"data.micro_batches is {micro_batches}; expected a multiple of the number of ranks{groups}, "
                f"{self.data_world}"
            )
        self.device = _device()
        if together > 1:
            assert isinstance(model, AvatarTransformer)
            model.share_sequence(SequenceGroup(neighbours(together, config.collective_timeout)))
        if isinstance(model, AvatarTransformer):
            compiled = compile_blocks(model, config.compile, self.device)
            if compiled and config.stage == 3:  # its hooks are around a block and none within: gathered as a whole
                set_z3_leaf_modules(model, [type(model.dit.blocks[0])])
        largest = max(getattr(p, "ds_numel", p.numel()) for p in model.parameters())  # ds_numel: of one that is sharded
        settings = deepspeed_settings(config, micro_batches // self.data_world, largest)
        trained = [p for p in model.parameters() if p.requires_grad]
        self._ds, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, model_parameters=trained, config=settings, dist_init_required=False
        )
        self.module: nn.Module = self._ds.module
        if isinstance(model, AvatarTransformer) and config.attention != NATIVE:
            choose_attention(model, config.attention, dtype=torch.bfloat16 if config.autocast == "bf16" else None)

    def __call__(
        self, latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None, audio: Tensor | None
    ) -> Tensor:
        """The model's forward pass, under the configured autocast."""
        with self._autocast():
            return self._ds(latents, timestep, text, condition, audio)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss; averaged over ranks and accumulation."""
        self._ds.backward(loss)

    def skip_step(self, loss: Tensor) -> None:
        """Call instead of `backward` for the last micro-batch of a step: `step` then changes nothing and says skipped.

        The gradient becomes NaN. Stages 1 to 3 reduce it and find the overflow, stage 0 finds it in the norm
        (`_plain_step`); both drop what was accumulated and keep weights and moments. Not calling `backward` or `step`
        at all would leave the engine's count of micro-batches and its pending reductions in the middle of a step.
        """
        self._ds.backward(loss * math.nan)

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
        """At stage 0 in fp32 DeepSpeed does not check the gradient; AdamW skips parameters whose gradient is None."""
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
        """The first rank's numbers, on every rank: decisions that depend on the clock must be the same on all ranks."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(shared, src=0)
        return shared.tolist()

    def total(self, *values: float) -> list[float]:
        """Sums over the ranks; ranks that share a sample (`sequence_parallel`) count once."""
        if self.world == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return (shared / self.config.sequence_parallel).tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every data rank, in order; for small objects, such as the names of a step's clips."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values[:: self.config.sequence_parallel]

    def wait(self) -> None:
        """Barrier over all ranks."""
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
        return gathered(parameters) if self.config.stage == 3 else nullcontext()

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write weights trained here, optimizer and `state` below folder/tag; frozen weights stay out."""
        self._ds.save_checkpoint(
            str(folder), tag, client_state=state, save_latest=False, exclude_frozen_parameters=True
        )

    def load(self, folder: Path, tag: str, universal: bool = False) -> dict[str, Any]:
        """Resume from what `save` wrote below folder/tag; returns the saved `state`.

        The number of ranks must equal the one that saved, unless the checkpoint was converted (`to_universal`).
        Raises ForeignStateError.
        """
        refuse_code(folder / tag)
        self._ds._config.load_universal_checkpoint = universal
        groups = self._ds.optimizer.param_groups
        settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        _, state = self._ds.load_checkpoint(str(folder), tag, load_module_strict=False)
        if universal and self.config.stage == 3:
            self._undo_sharing(settings)
        # ZeRO wraps torch's optimizer.
        set_kernel(getattr(self._ds.optimizer, "optimizer", self._ds.optimizer), self.config.fused_optimizer)
        return state

    def _undo_sharing(self, settings: list[dict[str, Any]]) -> None:
        """Undo what DeepSpeed 0.19.8 shares between parameter groups after loading the universal format.

        All groups get the weight decay of the first, and one step counter, which each group would then increment.
        """
        for group, own in zip(self._ds.optimizer.param_groups, settings, strict=True):
            group.update(own)
        for moments in self._ds.optimizer.optimizer.state.values():
            moments["step"] = copy.deepcopy(moments["step"])

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.config.autocast == "none":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def join_group(threads: int, timeout: float = 3600.0) -> None:
    """Join the process group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe; alone when they are absent.

    A collective that waits for longer than `timeout` seconds fails: with an exception on CPU, the process ends on CUDA.

    Once per process: DeepSpeed keeps the group until the process ends, later calls find it.

    Silences DeepSpeed 0.19.8's start-up messages, and two warnings of torch 2.13 at each of its collectives.
    """
    torch.set_num_threads(threads)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    for replaced in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", message=f".*{replaced}.*", category=FutureWarning)
    # ZeRO never uses this op, and without a compiler its build would fail and end the run.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    os.environ.setdefault("LOCAL_RANK", "0")
    if "RANK" not in os.environ and not dist.is_initialized():
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timedelta(seconds=timeout))


def neighbours(size: int, timeout: float) -> dist.ProcessGroup:
    """The group of `size` neighbouring ranks that this one belongs to; called by all ranks."""
    firsts, patience = range(0, dist.get_world_size(), size), timedelta(seconds=timeout)
    groups = [dist.new_group(list(range(first, first + size)), timeout=patience) for first in firsts]
    return groups[dist.get_rank() // size]


def leave_group() -> None:
    """Destroy the process group; the last collective call of a process."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device("cpu")
