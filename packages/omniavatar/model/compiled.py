"""Regional compilation: torch.compile of the transformer block, one graph for all blocks of a model.

What is compiled is the block's forward pass, inside its hooks: block offload, FSDP and ZeRO-3 move weights in hooks,
which run as before and are part of no graph (ZeRO-3 has to take the block as a leaf module, see training/engine).
Checkpointing is inside the graph, where the compiler knows what is recomputed; "offload" of checkpoints is outside.

Shapes: a graph of its own for the first GRAPHS shapes, as three kinds of chunk or the usual buckets need, and one
graph with symbolic sizes for all further ones. The number of graphs is thus bounded; each is logged.
"""

import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.user_cache import user_cache
from omniavatar.config import Compile
from omniavatar.model.cache import CachedText, PackedText
from omniavatar.model.transformer import AvatarTransformer

logger = logging.getLogger(__name__)

GRAPHS = 4


def compile_blocks(model: AvatarTransformer, setting: Compile, device: torch.device) -> bool:
    """Compile the blocks of `model`, which run on `device`; returns whether they are compiled.

    Call it last: after LoRA, gradient checkpointing, offload, sharding and sequence sharing. The first forward pass of
    a shape compiles, about a minute on a CPU; kernels are kept in `user_cache("inductor")`, or where the environment's
    TORCHINDUCTOR_CACHE_DIR points, and a second process finds them there. Output equals the eager one but for rounding.
    A second call compiles anew, with the checkpointing that was set since. "auto" compiles where a compiler is found,
    logs why not elsewhere, and runs eagerly what cannot be traced. Raises InputError when "inductor" has no compiler.
    """
    if setting == "off":
        return False
    reason = None if setting == "eager" else why_not(device.type)
    if reason is not None and setting == "auto":
        logger.warning("the blocks are not compiled: %s", reason)
        return False
    if reason is not None:
        raise InputError(f"compile is {setting!r}, but {reason}; install it, or set compile to auto or off.")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache("inductor")))
    shared = model.dit.ranks is not None
    if shared:
        for exchange in ("heads_for_tokens", "tokens_for_heads"):  # collectives stay out of the graphs
            setattr(model.dit.ranks, exchange, torch.compiler.disable(getattr(model.dit.ranks, exchange)))
    recompute = None if shared else _taken_checkpointing(model)
    graphs = _Graphs("eager" if setting == "eager" else "inductor", whole=not shared and setting != "auto")
    for block in model.dit.blocks:
        plain = block.forward.plain if isinstance(block.forward, _CompiledForward) else block.forward
        # Shadows the method of the class, so that `block(...)` still runs the hooks.
        block.forward = _CompiledForward(block.attn2, plain, recompute, graphs)
    return True


def why_not(device: str) -> str | None:
    """What torch.compile lacks on this machine for "cpu" or "cuda", in words that follow "but"; None when nothing."""
    variable, usual = ("CXX", "g++") if device == "cpu" else ("CC", "gcc")
    compiler = os.environ.get(variable) or usual
    if shutil.which(compiler.split()[0]) is None:
        return f"torch.compile needs the compiler {compiler} ({variable} names another), which is not installed here"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.exists():
        return f"torch.compile needs the header files of Python, and there is no {headers}"
    if device == "cuda" and find_spec("triton") is None:
        return "torch.compile needs the package triton, which is not installed here"
    return None


def _taken_checkpointing(model: AvatarTransformer) -> Callable[..., Tensor] | None:
    """The checkpoint function of the model, which from now on is the compiled block's; None where there is none."""
    run = model.dit._gradient_checkpointing_func if model.dit.gradient_checkpointing else None
    if not isinstance(run, partial):  # "offload" hooks into what autograd saves, which is no part of a graph
        return None
    model.dit.disable_gradient_checkpointing()
    return run


class _Graphs:
    """The shapes compiled so far, for all blocks of a model together."""

    def __init__(self, backend: str, whole: bool) -> None:
        # Torch's limit counts the graphs of all models of the process, and beyond it blocks would run eagerly.
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, 8 * (GRAPHS + 1))
        self.compile: Callable[..., Any] = partial(torch.compile, backend=backend, fullgraph=whole)
        self.seen: set[tuple[object, ...]] = set()
        self.symbolic = False

    def is_static(self, tokens: Tensor, text: Tensor) -> bool:
        """Whether these shapes have a graph of their own; new ones are counted and logged."""
        shape = (*tokens.shape, *text.shape, tokens.dtype, torch.is_grad_enabled())
        if shape in self.seen:
            return True
        if len(self.seen) < GRAPHS:
            self.seen.add(shape)
            logger.info(
                "compiling the block for %d x %d tokens, graph %d of %d", *tokens.shape[:2], len(self.seen), GRAPHS
            )
            return True
        if not self.symbolic:
            self.symbolic = True
            logger.info("compiling the block for all further shapes, with symbolic sizes")
        return False


class _CompiledForward:
    """The forward pass of one block, compiled; cached text is looked up before, as its keys and values."""

    def __init__(
        self,
        cross_attention: nn.Module,
        forward: Callable[..., Tensor],
        recompute: Callable[..., Tensor] | None,
        graphs: _Graphs,
    ) -> None:
        def run(tokens: Tensor, *shared: Any) -> Tensor:
            if recompute is None or not torch.is_grad_enabled():
                return forward(tokens, *shared)
            return recompute(forward, tokens, *shared)

        self.cross_attention, self.graphs, self.plain = cross_attention, graphs, forward
        self.static, self.symbolic = graphs.compile(run, dynamic=False), graphs.compile(run, dynamic=True)

    def __call__(self, tokens: Tensor, text: Tensor | CachedText | PackedText, *shared: Any) -> Tensor:
        """Tokens (B, s, dim), text, modulation and rotary tables, as the block takes them -> (B, s, dim)."""
        taken = text.keys(self.cross_attention) if isinstance(text, CachedText) else text
        is_static = self.graphs.is_static(tokens, taken if isinstance(taken, Tensor) else taken[0])
        compiled = self.static if is_static else self.symbolic
        out: Tensor = compiled(tokens, taken, *shared)
        return out
