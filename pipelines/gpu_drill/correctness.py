"""Correctness on this device, before any speed: the shipped small networks against the CPU, precisions, gradients.

Errors are |out - reference| / |reference| over all elements. The aims are what the arithmetic allows: float32 in
another order of summation stays far under 1e-4, bfloat16 operands leave 1e-3 to 1e-2.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor

from miniature.weights import model_paths
from omniavatar.config import Recompute
from pipelines.gpu_drill.device import SEED, exact_float32, relative_error
from pipelines.gpu_drill.drill import Bench, optional
from pipelines.gpu_drill.report import Value

SINGLE, HALF = "<= 1e-4", "<= 3e-2"
CPU = torch.device("cpu")


def _compared(bench: Bench, run: Callable[[torch.device, torch.dtype], Tensor], what: str = "") -> Iterator[Value]:
    """The error in float32 against the CPU, and of bfloat16 on the device against float32 on the CPU."""
    with torch.inference_mode(), exact_float32():
        reference = run(CPU, torch.float32)
        single = run(bench.device.torch_device, torch.float32)
        half = run(bench.device.torch_device, torch.bfloat16)
    yield Value(f"{what}float32 error", relative_error(single, reference), "", SINGLE, "against the CPU")
    yield Value(f"{what}bfloat16 error", relative_error(half, reference), "", HALF, "against float32 on the CPU")


def _draw(*shape: int, seed: int = SEED) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def transformer(bench: Bench) -> Iterator[Value]:
    """The shipped transformer with its adapter."""
    from omniavatar.model.transformer import build_condition, load_base
    from omniavatar.weights.checkpoints import load_adapter

    paths = model_paths()
    noisy, text, reference = _draw(1, 16, 3, 8, 8), _draw(1, 12, 64, seed=1), _draw(1, 16, 1, 8, 8, seed=2)
    condition, timestep = build_condition(reference, 3, 1), torch.tensor([750.0])

    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        model = load_base(paths["transformer"], dtype)
        load_adapter(model, paths["adapter"])
        audio = _draw(1, 9, model.audio_dim, seed=3)
        moved = (x.to(device) for x in (noisy, timestep, text, condition, audio))
        return model.to(device).eval()(*moved)

    yield from _compared(bench, run)


def int8(bench: Bench) -> Iterator[Value]:
    """The shipped transformer, LoRA merged, with weights in 8 bits against itself in bfloat16."""
    from omniavatar.model.adapter import merge_lora
    from omniavatar.model.transformer import build_condition, load_base
    from omniavatar.weights.checkpoints import load_adapter

    weights, paths = optional("omniavatar.model.int8", "storage of weights in 8 bits"), model_paths()
    model = load_base(paths["transformer"], torch.bfloat16)
    load_adapter(model, paths["adapter"])
    merge_lora(model)
    model.to(bench.device.torch_device).eval().requires_grad_(False)
    condition = build_condition(_draw(1, 16, 1, 8, 8, seed=2), 3, 1)
    drawn = _draw(1, 16, 3, 8, 8), torch.tensor([750.0]), _draw(1, 12, 64, seed=1), condition
    moved = [x.to(bench.device.torch_device) for x in (*drawn, _draw(1, 9, model.audio_dim, seed=3))]
    with torch.inference_mode():
        plain = model(*moved)
    for block in model.dit.blocks:
        weights.quantize_linears(block)
    with torch.inference_mode():
        yield Value("int8 error", relative_error(model(*moved), plain), "", HALF, "against bfloat16")


def vae(bench: Bench) -> Iterator[Value]:
    """The shipped VAE, encoding and decoding nine frames."""
    from omniavatar.encoders.vae import load_vae

    video, latents = torch.tanh(_draw(1, 3, 9, 32, 32)), _draw(1, 16, 3, 4, 4)
    for what, x in (("encode", video), ("decode", latents)):

        def run(device: torch.device, dtype: torch.dtype, what: str = what, x: Tensor = x) -> Tensor:
            model = load_vae(model_paths()["vae"], dtype, device)
            out: Tensor = getattr(model, what)(x.to(device))
            return out

        yield from _compared(bench, run, f"{what} ")


def umt5(bench: Bench) -> Iterator[Value]:
    """The shipped text encoder on one caption."""
    from omniavatar.encoders.text import load_text_encoder

    paths = model_paths()

    def run(device: torch.device, dtype: torch.dtype) -> Tensor:
        encoder = load_text_encoder(paths["text_encoder"], paths["tokenizer"], dtype, device)
        return encoder.encode(["a woman with red hair speaks and smiles"])[0]

    yield from _compared(bench, run)


def wav2vec2(bench: Bench) -> Iterator[Value]:
    """The shipped audio encoder on a second of noise; it is float32 always."""
    from omniavatar.encoders.audio import load_audio_encoder

    wave = _draw(16_000).numpy() * np.float32(0.1)

    def run(device: torch.device) -> Tensor:
        return load_audio_encoder(model_paths()["audio_encoder"], device).encode(wave)

    with exact_float32():
        error = relative_error(run(bench.device.torch_device), run(CPU))
    yield Value("float32 error", error, "", SINGLE, "against the CPU")


def gradients(bench: Bench) -> Iterator[Value]:
    """The gradient of a LoRA training step, by gradient checkpointing, against the CPU without any."""
    from pipelines.gpu_drill.networks import trained_avatar
    from pipelines.gpu_drill.sizes import TINY
    from pipelines.gpu_drill.transformer import OBJECTIVE, training_batch
    from training.omniavatar.objective import sample_losses

    small = replace(bench, sizes=TINY)
    model, batch = trained_avatar(small, "14B").float(), training_batch(small)

    def gradient(device: torch.device, mode: Recompute) -> Tensor:
        model.to(device).set_gradient_checkpointing(mode)
        model.zero_grad(set_to_none=True)
        sample_losses(model, batch.to(device), OBJECTIVE).mean().backward()
        return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])

    with exact_float32():
        reference = gradient(CPU, "none")
        for mode in get_args(Recompute):
            error = relative_error(gradient(bench.device.torch_device, mode), reference)
            yield Value(f"{mode} error", error, "", SINGLE, "float32, against the CPU without checkpointing")
