"""Encoders and the judge at their published sizes: VAE both ways, umT5 on 512 tokens, Q-Align on a batch of images.

Operations are counted by torch in the untimed call: the sizes of convolutions have no short formula.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode

from miniature.weights import model_paths
from omniavatar.encoders.vae import WanVAE
from pipelines.gpu_drill.device import SEED
from pipelines.gpu_drill.drill import Bench
from pipelines.gpu_drill.networks import random_module
from pipelines.gpu_drill.report import Value


def timed_and_counted(bench: Bench, work: Callable[[], Any], what: str) -> Iterator[Value]:
    """The median time of a work, its share of the ceiling and its peak memory; the call that warms up is counted."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = bench.device.seconds(work, bench.sizes.rounds, warm=0)
    yield Value("time", seconds, "s", note=what)
    yield from bench.hfu(counter.get_total_flops(), seconds)
    yield bench.peak()


def _vae(bench: Bench) -> WanVAE:
    arguments = dict(bench.sizes.vae)
    return WanVAE(random_module(lambda: AutoencoderKLWan(**arguments), bench.device, torch.bfloat16)).to(
        bench.device.torch_device
    )


def _size(bench: Bench, vae: WanVAE) -> tuple[int, int]:
    return bench.sizes.height * vae.stride[1], bench.sizes.width * vae.stride[2]


def vae_encode(frames: int | None) -> Callable[[Bench], Iterator[Value]]:
    """Encoding of a chunk's frames, or of this many."""

    def run(bench: Bench) -> Iterator[Value]:
        vae = _vae(bench)
        height, width = _size(bench, vae)
        length = min(frames or bench.sizes.pixel_frames, bench.sizes.pixel_frames)
        video = torch.rand(1, 3, length, height, width, device=bench.device.torch_device) * 2 - 1
        with torch.inference_mode():
            yield from timed_and_counted(bench, lambda: vae.encode(video), f"{length} frames of {height} x {width}")

    return run


def vae_decode(bench: Bench) -> Iterator[Value]:
    """Decoding of a chunk's latents."""
    vae = _vae(bench)
    height, width = _size(bench, vae)
    latents = torch.randn(
        1, 16, bench.sizes.frames, bench.sizes.height, bench.sizes.width, device=bench.device.torch_device
    )
    with torch.inference_mode():
        what = f"{bench.sizes.pixel_frames} frames of {height} x {width}"
        yield from timed_and_counted(bench, lambda: vae.decode(latents), what)


def umt5(bench: Bench) -> Iterator[Value]:
    """umT5-XXL on one prompt of the longest length, tokenisation included."""
    from transformers import UMT5Config, UMT5EncoderModel

    from omniavatar.encoders.text import TextEncoder, load_tokenizer

    sizes = {"vocab_size": 256_384, "d_model": 4096, "d_kv": 64, "d_ff": 10_240, "num_layers": 24, "num_heads": 64}
    config = UMT5Config(**(sizes | dict(bench.sizes.umt5)), feed_forward_proj="gated-gelu", dropout_rate=0.0)
    model = random_module(lambda: UMT5EncoderModel(config), bench.device, torch.bfloat16)
    tokenizer = load_tokenizer(model_paths()["tokenizer"])
    tokenizer.model_max_length = bench.sizes.text  # of the small world's tokenizer, whose ids are valid in any
    encoder = TextEncoder(model, tokenizer)
    prompt = "a man speaks and smiles " * bench.sizes.text
    length = len(encoder.encode([prompt])[0])
    yield from timed_and_counted(bench, lambda: encoder.encode([prompt]), f"{length} tokens")


def qalign(bench: Bench) -> Iterator[Value]:
    """Q-Align, both questions about a batch of images, preparation on the host included."""
    from sentencepiece import SentencePieceProcessor

    from perception.quality.qalign import Preprocessor, QAlign
    from perception.quality.qalign_model import Owl, OwlConfig

    config = OwlConfig.from_json(bench.sizes.qalign)
    # Positions are buffers, which come from the file as well, in the type of the weights.
    owl = random_module(lambda: Owl(config), bench.device, bench.device.half).to(bench.device.half)
    tokenizer = SentencePieceProcessor(model_file=str(model_paths()["quality_scorer"] / "tokenizer.model"))
    judge = QAlign(owl, tokenizer, Preprocessor(config.vision.image_size))
    side = bench.sizes.image_side
    images = list(np.random.default_rng(SEED).integers(0, 256, (bench.sizes.images, side, side, 3), np.uint8))
    for value in timed_and_counted(bench, lambda: judge.rate(images), f"{len(images)} images, two questions"):
        yield value
        if value.measure == "time":
            yield Value("images per second", len(images) / value.value, "1/s")
