"""Choice of the attention kernel: measured once for a shape on a device, and remembered.

diffusers' dispatcher knows the kernels and their requirements; a call on one token shows whether a kernel runs on this
device in this precision. All candidates are exact: they differ in rounding alone.
"""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend, dispatch_attention_fn

from common.errors import InputError
from common.runs import DiskFullError, write_json
from common.user_cache import user_cache
from omniavatar.model.transformer import AvatarTransformer

logger = logging.getLogger(__name__)

NATIVE = AttentionBackendName.NATIVE.value
TOKENS = 30_000
# In the order in which equally fast ones are taken.
_FASTER = (AttentionBackendName._FLASH_3.value, AttentionBackendName.FLASH.value)
_CANDIDATES = {
    "cuda": (NATIVE, *_FASTER, *(f"_native_{kind}" for kind in ("cudnn", "flash", "efficient"))),
    "cpu": (NATIVE, "_native_flash"),
}
_TIE = 1.03  # times that differ by less are equal


@dataclass(frozen=True)
class AttentionShape:
    """What the speed of a kernel depends on, for self-attention of one sample."""

    heads: int
    head_dim: int
    tokens: int
    dtype: torch.dtype
    device: torch.device
    backward: bool = False

    @property
    def key(self) -> str:
        """Name of the choice in the file: tokens up to the next power of two count as equal."""
        cuda = self.device.type == "cuda"
        name = torch.cuda.get_device_name(self.device) if cuda else self.device.type
        way = "forward and backward" if self.backward else "forward"
        dtype = str(self.dtype).removeprefix("torch.")
        sizes = f"{self.heads} heads of {self.head_dim}, {self.bucket} tokens, {dtype}"
        return f"{sizes}, {way}, {name}, torch {torch.__version__}"

    @property
    def bucket(self) -> int:
        """The number of tokens that is measured."""
        return 1 << (self.tokens - 1).bit_length()


def choose_attention(
    model: AvatarTransformer, name: str = "auto", tokens: int = TOKENS, dtype: torch.dtype | None = None
) -> str:
    """Set the attention kernel of `model`, by its name in diffusers' dispatcher, and return the name.

    "native" is torch's scaled_dot_product_attention, on every device. "measure": the fastest of torch's kernels and of
    flash-attention 3 and 2, where installed, for self-attention over `tokens` tokens in `dtype` (None: of the weights).
    It is measured once for a shape, device and version of torch and kept in `user_cache("attention.json")`, so that
    noise does not change the kernel, and with it the roundings and the cached chunks, from run to run. "auto" measures
    on CUDA in half precision and is "native" elsewhere. Kernels that quantise (sage) are used by name only, those
    fetched from a hub never. A model with weights to train uses torch's own kernels, measured with the backward pass:
    flash-attention 3 has none in diffusers, and the others do not accept the dtypes of autocast.
    Raises ValueError, and changes nothing, when the kernel is unknown, not installed or does not run on this device.
    """
    shape = _shape_of(model, tokens, dtype)
    half = shape.dtype in (torch.bfloat16, torch.float16)
    if name == "measure" or (name == "auto" and shape.device.type == "cuda" and half):
        chosen = remembered_kernel(shape, user_cache("attention.json"))
    elif name == "auto":
        chosen = NATIVE
    else:
        chosen = name
        reason = _why_not(shape, chosen)
        if reason is not None:
            raise InputError(f"Attention {name!r} cannot be used: {reason} Use 'auto' or 'native'.")
    if chosen != _current(model):
        # The context restores the default of the process, which diffusers changes along with the model's.
        with attention_backend(AttentionBackendName.NATIVE):
            model.dit.set_attention_backend(chosen)
    logger.info("attention is computed by %s", chosen)
    return chosen


def remembered_kernel(shape: AttentionShape, file: Path) -> str:
    """The kernel that `file` names for this shape; where it names none, the fastest here, which it then names.

    Processes of one machine that ask at the same time get the same answer. Where the file cannot be written nothing is
    measured, and the first that runs of flash-attention 3, 2 and torch's own is taken.
    """
    names = [name for name in _CANDIDATES.get(shape.device.type, (NATIVE,)) if _why_not(shape, name) is None]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            choices = _read_choices(file)
            if choices.get(shape.key) in names:
                return choices[shape.key]
            seconds = measure_kernels(shape, names)
            if not seconds:  # no memory for a single one: another time there may be
                return NATIVE
            chosen = fastest(seconds)
            figures = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in seconds.items())
            logger.info("attention measured for %s: %s", shape.key, figures)
            write_json(file, {"version": 1, "kernels": choices | {shape.key: chosen}})
            return chosen
    except (OSError, DiskFullError) as error:
        chosen = next((name for name in _FASTER if name in names), NATIVE)
        logger.warning("%s cannot be written (%s); attention is not measured, %s is taken", file, error, chosen)
        return chosen


def measure_kernels(shape: AttentionShape, names: list[str]) -> dict[str, float]:
    """Median seconds of three calls of each kernel after a first one, in turn; without those that run out of memory."""
    sizes = (3, 1, shape.bucket, shape.heads, shape.head_dim)
    try:
        query, key, value = torch.randn(sizes, dtype=shape.dtype, device=shape.device).unbind()
    except RuntimeError:
        return {}
    if shape.backward:
        query.requires_grad_()
    calls = {name: _call(name, query, key, value, shape) for name in names}
    rounds: dict[str, list[float]] = {}
    for number in range(4):
        for name in list(calls):
            try:
                spent = _seconds(calls[name], shape.device)
            except RuntimeError:  # torch's error for exhausted memory derives from it
                del calls[name]
                rounds.pop(name, None)
                continue
            if number:
                rounds.setdefault(name, []).append(spent)
    return {name: median(spent) for name, spent in rounds.items()}


def fastest(seconds: Mapping[str, float]) -> str:
    """The first kernel that is not slower than the best by more than 3 %."""
    return next(name for name, value in seconds.items() if value <= _TIE * min(seconds.values()))


def _call(
    name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, shape: AttentionShape
) -> Callable[[], None]:
    def call() -> None:
        with torch.set_grad_enabled(shape.backward), attention_backend(AttentionBackendName(name)):
            out = dispatch_attention_fn(query, key, value)
            if shape.backward:
                out.backward(out.detach())

    return call


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        begin = time.process_time()  # which other programs disturb less than the clock
        call()
        return time.process_time() - begin
    torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def _read_choices(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text("utf-8"))
        if content["version"] == 1 and all(isinstance(name, str) for name in content["kernels"].values()):
            return dict(content["kernels"])
        reason = "its version is another"
    except FileNotFoundError:
        return {}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
    logger.warning("%s is ignored and replaced: it is no list of measured kernels (%s)", file, reason)
    return {}


def _shape_of(model: AvatarTransformer, tokens: int, dtype: torch.dtype | None) -> AttentionShape:
    block = model.dit.blocks[0].attn1
    weight = block.norm_q.weight
    heads = block.heads // (model.dit.ranks.size if model.dit.ranks else 1)
    return AttentionShape(
        heads, block.inner_dim // block.heads, tokens, dtype or weight.dtype, weight.device, _trains(model)
    )


def _trains(model: AvatarTransformer) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def _current(model: AvatarTransformer) -> str:
    return getattr(model.dit.blocks[0].attn1.processor._attention_backend, "value", NATIVE)


def _why_not(shape: AttentionShape, name: str) -> str | None:
    """Why this kernel cannot compute attention of this shape, as one sentence; None when it can."""
    names = [backend.value for backend in AttentionBackendName if "hub" not in backend.value]
    if name not in names:
        return f"expected one of {', '.join(names)}."
    if "native" not in name and shape.backward:
        return "the model has weights to train, which needs one of torch's own kernels."
    probe = torch.zeros(1, 1, shape.heads, shape.head_dim, dtype=shape.dtype, device=shape.device)
    try:
        with torch.no_grad(), attention_backend(AttentionBackendName(name)):
            dispatch_attention_fn(probe, probe, probe)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        return f"{str(error) or type(error).__name__}".splitlines()[0].rstrip(".") + "."
    return None
