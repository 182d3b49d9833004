"""The rows of the drill, in the order of their value: what is right, the ceilings, then what users wait for.

A new row is a generator of `Value`s that takes a `Bench`, and a line here: its name, the generator, its seconds beside
arithmetic, its operations and the memory it needs. `make gpu TINY=1` must run it on a CPU.
"""

from collections.abc import Callable, Iterator
from importlib import import_module

from omniavatar.config import Recompute
from pipelines.gpu_drill.drill import Bench, Row
from pipelines.gpu_drill.report import Value
from pipelines.gpu_drill.sizes import GUIDED_STEPS, Sizes

OVERLAP = 13  # frames that the next chunk is given
RELEASED = 1.1  # a forward pass with LoRA beside the weights, to one with it merged


def late(name: str, *arguments: object) -> Callable[[Bench], Iterator[Value]]:
    """The row `module.function` of this folder, made by the function where there are arguments; imported when it runs.

    So a package that is not installed costs the rows that need it, and no others.
    """
    module, _, function = name.partition(".")

    def run(bench: Bench) -> Iterator[Value]:
        found = getattr(import_module(f"pipelines.gpu_drill.{module}"), function)
        row: Callable[[Bench], Iterator[Value]] = found(*arguments) if arguments else found
        return row(bench)

    return run


def _forward(size: str, aim: str = "") -> Row:
    return Row(
        f"forward_{size.lower()}",
        late("transformer.forward", size, aim),
        seconds=8,
        flops=lambda sizes: (sizes.rounds + 1) * (1 + RELEASED) * sizes.merged_forward(size),
        memory=lambda sizes: sizes.forward_bytes(size),
    )


def _variant(size: str, variant: str, seconds: float) -> Row:
    return Row(
        f"forward_{size.lower()}_{variant}",
        late("transformer.forward_variant", size, variant),
        seconds=seconds,
        flops=lambda sizes: (sizes.rounds + 3) * sizes.merged_forward(size),
        memory=lambda sizes: sizes.forward_bytes(size),
    )


def _step(size: str, mode: Recompute, aim: str = "", compile: bool = False) -> Row:
    peer = mode == "full"  # as the peer checkpoints
    return Row(
        f"step_{size.lower()}_{mode}{'_compiled' if compile else ''}",
        late("transformer.training_step", size, mode, aim, peer, compile),
        seconds=110 if compile else 10,
        flops=lambda sizes: 2 * (1 + peer) * sizes.work(size, mode).executed,
        memory=lambda sizes: sizes.step_bytes(size, mode),
    )


def _chunk(size: str, passes: int, aim: str = "") -> Row:
    return Row(
        f"chunk_{size.lower()}_{passes}_passes",
        late("chunk.chunk", size, passes, aim),
        seconds=12,
        flops=lambda sizes: (sizes.rounds + 1) * passes * (1 + RELEASED) * sizes.merged_forward(size),
        memory=lambda sizes: sizes.forward_bytes(size),
    )


def _whole(size: str, passes: int, aim: str) -> Row:
    return Row(
        f"whole_chunk_{size.lower()}_{passes}_passes",
        late("chunk.whole_chunk", size, passes, aim),
        seconds=8,
        flops=lambda sizes: GUIDED_STEPS * passes * sizes.merged_forward(size),
        memory=lambda sizes: sizes.forward_bytes(size),
    )


def _full(amount: float) -> Callable[[Sizes], float]:
    """An amount, in units of 1e9, that was counted at full size; nothing at tiny sizes."""
    return lambda sizes: amount * 1e9 if sizes.name == "full" else 0.0


ROWS = (
    Row("correct_transformer", late("correctness.transformer"), 25),  # with the import of the libraries
    Row("correct_vae", late("correctness.vae"), 5),
    Row("correct_umt5", late("correctness.umt5"), 4),
    Row("correct_wav2vec2", late("correctness.wav2vec2"), 4),
    Row("correct_gradients", late("correctness.gradients"), 5),
    Row("correct_attention", late("kernels.attention_errors"), 4),
    Row("correct_int8", late("correctness.int8"), 4),
    Row("correct_avatar", late("avatar.correct"), 8),
    Row("correct_avatar_gsplat", late("avatar.against_gsplat"), 60),  # its kernels may be compiled first
    Row("linear_fp8", late("kernels.eight_bits", "fp8"), 4, memory=_full(8)),
    Row("linear_int8", late("kernels.eight_bits", "int8"), 4, memory=_full(8)),
    Row("ceilings", late("kernels.ceilings"), 6, memory=_full(9)),
    Row("attention_speed", late("kernels.attention_speed"), 8, _full(1e6), _full(4)),
    _forward("14B", "<= 2.7"),
    _step("14B", "full", ">= 0.5"),
    Row("avatar_frame", late("avatar.frame"), 8, memory=_full(4)),
    Row("avatar_fit", late("avatar.fit_step"), 8, memory=_full(8)),
    Row("avatar_say", late("avatar.say"), 20),
    Row("vae_decode", late("encoders.vae_decode"), 8, _full(1e6), _full(12)),
    Row("vae_overlap", late("encoders.vae_encode", OVERLAP), 5, _full(1e5), _full(12)),
    Row("vae_encode", late("encoders.vae_encode", None), 5, _full(6e5), _full(12)),
    Row("umt5", late("encoders.umt5"), 8, memory=_full(13)),
    _chunk("14B", 2, "<= 135"),
    _step("14B", "selective", ">= 0.5"),
    _forward("1.3B"),
    _variant("14B", "compiled", 70),
    _variant("14B", "int8", 12),
    Row("qalign", late("encoders.qalign"), 12, memory=_full(18)),
    _step("1.3B", "full"),
    _chunk("14B", 3, "<= 200"),
    _step("14B", "selective", ">= 0.5", compile=True),
    _step("14B", "offload", ">= 0.5"),
    Row(
        "zero3_1.3b",
        late("transformer.zero3_step", "1.3B"),
        seconds=25,
        flops=lambda sizes: 3 * sizes.work("1.3B", "full").executed,
        memory=lambda sizes: 1.2 * sizes.step_bytes("1.3B", "full"),
    ),
    _step("1.3B", "selective"),
    _step("1.3B", "offload"),
    _chunk("1.3B", 2),
    _chunk("1.3B", 3),
    _whole("14B", 2, "<= 135"),
)
