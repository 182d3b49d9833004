"""The transformer at full length: forward pass, LoRA training step, and a step under DeepSpeed ZeRO-3.

Each beside a plain peer on the same weights, in turns: the forward pass as the released code calls it (LoRA beside the
weights, text and audio projected anew, the kernel that code would choose), and diffusers' own forward with torch's
checkpointing and AdamW.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

from common.errors import InputError
from omniavatar.config import Recompute
from omniavatar.model.attention import choose_attention
from omniavatar.model.cache import CachedAudio, CachedText
from omniavatar.model.transformer import AvatarTransformer
from pipelines.gpu_drill.device import relative_error
from pipelines.gpu_drill.drill import Bench, LeftOutError, optional
from pipelines.gpu_drill.networks import as_ours, as_released, avatar, chunk_inputs, trained_avatar
from pipelines.gpu_drill.report import Value
from pipelines.gpu_drill.sizes import TRAINED
from training.config import ObjectiveConfig, OptimizerConfig
from training.engine.optimizer import build_optimizer
from training.omniavatar.objective import Batch, sample_losses

OBJECTIVE = ObjectiveConfig()
LR = 5e-5
Loss = Callable[[Batch], Tensor]


def forward(size: str, aim: str = "") -> Callable[[Bench], Iterator[Value]]:
    """One forward pass, ours and as released."""

    def run(bench: Bench) -> Iterator[Value]:
        model, inputs = avatar(bench, size), chunk_inputs(bench)
        timestep = torch.full((1,), 875.0, device=bench.device.torch_device)
        cached = CachedText(inputs.text), CachedAudio(inputs.audio)
        with torch.inference_mode():
            kernel = as_ours(model)
            seconds = bench.device.seconds(
                lambda: model(inputs.noise, timestep, cached[0], inputs.condition, cached[1]), bench.sizes.rounds
            )
        yield Value("time", seconds, "s", bench.aim(aim) if aim else "", f"attention {kernel}")
        yield from bench.hfu(bench.sizes.merged_forward(size), seconds)
        yield bench.peak(bench.sizes.forward_bytes(size))
        with torch.inference_mode():
            kernel = as_released(model)
            peer = bench.device.seconds(
                lambda: model(inputs.noise, timestep, inputs.text, inputs.condition, inputs.audio), bench.sizes.rounds
            )
        yield Value("time as released", peer, "s", note=f"attention {kernel}, LoRA beside the weights")
        yield Value("ours / released", seconds / peer, "")

    return run


def forward_variant(size: str, variant: str) -> Callable[[Bench], Iterator[Value]]:
    """Our forward pass with "compiled" blocks, or with "int8" weights in them, beside the plain one of `forward`."""

    def run(bench: Bench) -> Iterator[Value]:
        change = {"compiled": compiled, "int8": int8}[variant]
        model, inputs = avatar(bench, size), chunk_inputs(bench)
        timestep = torch.full((1,), 875.0, device=bench.device.torch_device)

        def once() -> Tensor:
            out: Tensor = model(inputs.noise, timestep, cached[0], inputs.condition, cached[1])
            return out

        with torch.inference_mode():
            as_ours(model)
            cached = CachedText(inputs.text), CachedAudio(inputs.audio)
            plain = once()
            with torch.inference_mode(False):
                change(model, bench)
            bench.device.release()
            cached = CachedText(inputs.text), CachedAudio(inputs.audio)
            with bench.device.span() as first:
                changed = once()
            yield Value(
                "error", relative_error(changed, plain), "", "<= 5e-2", "against the plain pass, random weights"
            )
            yield Value("first pass", first.seconds, "s")
            seconds = bench.device.seconds(once, bench.sizes.rounds)
        yield Value("time", seconds, "s")
        yield from bench.hfu(bench.sizes.merged_forward(size), seconds)
        yield bench.peak()
        before = bench.report.find(f"forward_{size.lower()}", "time")
        if before:
            yield Value(f"{variant} / plain", seconds / before, "")

    return run


def compiled(model: AvatarTransformer, bench: Bench) -> None:
    """Compile the blocks; tiny ones are traced only. Raises LeftOutError where there is no compiler."""
    blocks = optional("omniavatar.model.compiled", "regional compilation")
    try:
        setting = "inductor" if bench.sizes.name == "full" else "eager"
        blocks.compile_blocks(model, setting, bench.device.torch_device)
    except InputError as error:
        raise LeftOutError(str(error)) from error


def int8(model: AvatarTransformer, bench: Bench) -> None:
    """Store the weights of the blocks in 8 bits."""
    weights = optional("omniavatar.model.int8", "storage of weights in 8 bits")
    for block in model.dit.blocks:
        weights.quantize_linears(block)


def training_step(
    size: str, mode: Recompute, aim: str = "", peer: bool = False, compile: bool = False
) -> Callable[[Bench], Iterator[Value]]:
    """One LoRA training step by gradient checkpointing: with the plain peer in turns, or with compiled blocks."""

    def run(bench: Bench) -> Iterator[Value]:
        model, batch = trained_avatar(bench, size), training_batch(bench)
        model.set_gradient_checkpointing(mode)
        kernel = choose_attention(model)
        if compile:
            compiled(model, bench)
        works = [plain_step(model, bench, lambda each: sample_losses(model, each, OBJECTIVE), batch)]
        if peer:
            works.append(plain_step(model, bench, lambda each: _diffusers_losses(model, each), batch))
        # One timed step after one that warms up: at 14B each takes ten seconds and more.
        (ours,), *others = bench.device.times(*works, rounds=1)
        yield Value("time", ours, "s", note=f"{mode} checkpointing, attention {kernel}")
        yield from bench.hfu(bench.sizes.work(size, mode).executed, ours, bench.aim(aim) if aim else "")
        yield from bench.hfu(bench.sizes.work(size).step, ours, measure="MFU")
        yield bench.peak(bench.sizes.step_bytes(size, mode))
        for (seconds,) in others:
            yield Value("time of the peer", seconds, "s", note="diffusers, torch's checkpointing and AdamW")
            yield Value("ours / peer", ours / seconds, "")

    return run


def training_batch(bench: Bench) -> Batch:
    """A random micro-batch of one sample of a chunk's size, with a prefix of one latent."""
    inputs = chunk_inputs(bench)
    where = bench.device.torch_device
    return Batch(
        clean=chunk_inputs(bench, seed=1).noise,
        noise=inputs.noise,
        sigma=torch.tensor([0.7], device=where),
        prefix=torch.tensor([1], device=where),
        text=inputs.text,
        condition=inputs.condition,
        audio=inputs.audio,
    )


def plain_step(model: nn.Module, bench: Bench, losses: Loss, batch: Batch) -> Callable[[], object]:
    """A training step without DeepSpeed: forward, backward, clipping and AdamW, in the published recipes' precision.

    Nothing in it waits for the device; AdamW keeps its moments from call to call.
    """
    optimizer = build_optimizer(model, OptimizerConfig(lr=LR))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        with torch.autocast(bench.device.torch_device.type, dtype=torch.bfloat16):
            loss = losses(batch).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, TRAINED.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _diffusers_losses(model: AvatarTransformer, batch: Batch) -> Tensor:
    """The same objective through diffusers' forward of the same weights, which has no audio layers."""

    def velocity(
        latents: Tensor, timestep: Tensor, text: Tensor, condition: Tensor | None, audio: Tensor | None
    ) -> Tensor:
        assert condition is not None
        both = torch.cat([latents, condition], dim=1)
        out: Tensor = WanTransformer3DModel.forward(model.dit, both, timestep, text, return_dict=False)[0]
        return out

    return sample_losses(velocity, batch, OBJECTIVE)


def zero3_step(size: str) -> Callable[[Bench], Iterator[Value]]:
    """One step of the trainer's own engine on one rank: what ZeRO-3 costs where there is nothing to share."""

    def run(bench: Bench) -> Iterator[Value]:
        from training.engine.zero import Engine, join_group

        join_group(threads=torch.get_num_threads())
        model, batch = trained_avatar(bench, size), training_batch(bench)
        model.set_gradient_checkpointing("full")
        engine = Engine(model, build_optimizer(model, OptimizerConfig(lr=LR)), 1, replace(TRAINED, stage=3))

        def step() -> None:
            engine.backward(sample_losses(engine, batch, OBJECTIVE).mean())
            engine.step(LR)

        # In the second step DeepSpeed still records the order of the modules.
        seconds = bench.device.seconds(step, rounds=1, warm=bench.sizes.rounds - 1)
        yield Value("time", seconds, "s", note="full checkpointing, one rank")
        yield from bench.hfu(bench.sizes.work(size, "full").executed, seconds)
        yield bench.peak()
        plain = bench.report.find(f"step_{size.lower()}_full", "time")
        if plain:
            yield Value("ZeRO-3 / plain step", seconds / plain, "")

    return run
