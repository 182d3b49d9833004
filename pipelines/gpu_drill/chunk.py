"""A 73-frame chunk with two and with three guidance passes a step: our sampler, and a plain loop as released, in turns.

The plain loop is written as the released code does it: every pass on its own with its text and audio projected anew,
LoRA beside the weights, latents in bfloat16. Steps are timed, a chunk is 25 of them with the VAE and the text encoder.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from omniavatar.model.flow import TIMESTEPS, euler_step, sigma_schedule
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.video.sampler import Guidance, denoise
from pipelines.gpu_drill.device import Span
from pipelines.gpu_drill.drill import Bench
from pipelines.gpu_drill.networks import ChunkInputs, as_ours, as_released, avatar, chunk_inputs
from pipelines.gpu_drill.report import Value
from pipelines.gpu_drill.sizes import GUIDED_STEPS

SHIFT = 5.0
GUIDANCES = {2: Guidance(4.5, 4.5), 3: Guidance(4.5, 3.0)}  # by passes of a step


def released_step(
    model: AvatarTransformer, latents: Tensor, inputs: ChunkInputs, guidance: Guidance, sigma: float, then: float
) -> Tensor:
    """One Euler step of the released loop in two or three passes: latents (1, 16, T, h, w) at `sigma` -> at `then`."""
    held = inputs.prefix.shape[2]
    latents[:, :, :held] = inputs.prefix
    timestep = torch.full((1,), sigma * TIMESTEPS, device=latents.device)
    silence = torch.zeros_like(inputs.audio)
    negative = model(latents, timestep, inputs.negative, inputs.condition, silence)
    both = model(latents, timestep, inputs.text, inputs.condition, inputs.audio)
    if guidance.text == guidance.audio:
        velocity = negative + guidance.text * (both - negative)
    else:
        text = model(latents, timestep, inputs.text, inputs.condition, silence)
        velocity = negative + guidance.text * (text - negative) + guidance.audio * (both - text)
    return euler_step(latents, velocity, sigma, then)


def chunk(size: str, passes: int, aim: str = "") -> Callable[[Bench], Iterator[Value]]:
    """Three timed steps of each loop after one that warms up; extrapolated to the chunk."""

    def run(bench: Bench) -> Iterator[Value]:
        model, inputs = avatar(bench, size), chunk_inputs(bench)
        ours, theirs = _steps_in_turns(bench, model, inputs, GUIDANCES[passes])
        step, peer = median(ours), median(theirs)
        yield Value("step", step, "s", note=_spread(ours))
        yield from bench.hfu(passes * bench.sizes.merged_forward(size), step)
        yield bench.peak(bench.sizes.forward_bytes(size))
        yield Value("step as released", peer, "s", note=_spread(theirs))
        yield Value("ours / released", step / peer, "")
        rest, without = _beside_the_steps(bench)
        whole = GUIDED_STEPS * step + rest["ours"]
        yield Value("chunk", whole, "s", bench.aim(aim) if aim else "", f"{GUIDED_STEPS} steps, VAE, text{without}")
        whole_peer = GUIDED_STEPS * peer + rest["released"]
        yield Value("chunk as released", whole_peer, "s", note=f"{GUIDED_STEPS} steps, VAE, text{without}")

    return run


def _steps_in_turns(
    bench: Bench, model: AvatarTransformer, inputs: ChunkInputs, guidance: Guidance
) -> tuple[list[float], list[float]]:
    """Seconds of each step after the first, ours and as released, the two in turns.

    Our sampler is called once, so that what it caches in the first step serves the others as in a whole chunk; after
    each of its steps the plain loop makes one of its own.
    """
    rounds = bench.sizes.rounds + 1
    sigmas = list(pairwise(sigma_schedule(rounds, SHIFT).tolist()))
    spans: dict[str, list[Span]] = {"ours": [], "released": []}
    latents = inputs.noise.bfloat16()
    open_span = bench.device.span()

    def after_step() -> None:
        nonlocal latents, open_span
        open_span.__exit__()
        spans["ours"].append(open_span)
        as_released(model)
        with bench.device.span() as span:
            latents = released_step(model, latents, inputs, guidance, *sigmas[len(spans["released"])])
        spans["released"].append(span)
        as_ours(model)
        open_span = bench.device.span()
        open_span.__enter__()

    as_ours(model)
    open_span.__enter__()
    _denoise(model, inputs, guidance, rounds, after_step)
    ours, theirs = ([span.seconds for span in found[1:]] for found in spans.values())
    return ours, theirs


def _denoise(
    model: AvatarTransformer,
    inputs: ChunkInputs,
    guidance: Guidance,
    steps: int,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    return denoise(
        model, inputs.noise, inputs.text, inputs.negative, inputs.condition, inputs.audio, inputs.prefix,
        steps=steps, shift=SHIFT, guidance=guidance, on_step=on_step,
    )  # fmt: skip


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.3f} to {max(seconds):.3f} s"


def _beside_the_steps(bench: Bench) -> tuple[dict[str, float], str]:
    """Seconds of a chunk outside its steps, ours and as released, and a remark where they were not measured.

    Ours: one VAE decode and the encoding of the overlap, and of the text once for the video, here counted in full. The
    released code decodes twice (the given frames alone, for nothing).
    """
    found = [bench.report.find(row, "time") for row in ("vae_decode", "vae_overlap", "umt5")]
    decode, overlap, text = (seconds or 0.0 for seconds in found)
    ours = decode + overlap + 2 * text
    return {"ours": ours, "released": ours + decode}, "" if all(found) else ", of which some were not measured"


def whole_chunk(size: str, passes: int, aim: str) -> Callable[[Bench], Iterator[Value]]:
    """All 25 steps of one chunk in one piece: what the extrapolation says, measured."""

    def run(bench: Bench) -> Iterator[Value]:
        model, inputs = avatar(bench, size), chunk_inputs(bench)
        as_ours(model)
        steps = GUIDED_STEPS if bench.sizes.name == "full" else bench.sizes.rounds
        seconds = bench.device.seconds(lambda: _denoise(model, inputs, GUIDANCES[passes], steps), rounds=1, warm=0)
        yield Value("steps", seconds, "s", note=f"{steps} steps in one piece")
        rest, without = _beside_the_steps(bench)
        yield Value("chunk", seconds + rest["ours"], "s", bench.aim(aim), f"with VAE and text{without}")

    return run
