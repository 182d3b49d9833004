"""Sizes of what is measured, and the tiny ones with which the same code runs on a CPU in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from common.constants import FRAMES_PER_LATENT
from omniavatar.config import LoadConfig, Recompute
from omniavatar.planning.memory import PIXELS, Job, lora_bytes, sampling_working, transformer_bytes
from omniavatar.planning.network import HALF
from training.config import EngineConfig
from training.planning.flops import Work, work
from training.planning.memory import Network, memory

GUIDED_STEPS = 25  # Euler steps of a chunk, the paper's
TRAINED = EngineConfig(stage=0, autocast="bf16", frozen_dtype="bf16")  # precision of the published recipes


@dataclass(frozen=True)
class Sizes:
    """Everything a row sizes its inputs by. `frames`, `height` and `width` are those of the latents of one chunk.

    `networks`: transformers with the LoRA on them, by name; `umt5`, `vae`, `qalign`: arguments of the encoders' and the
    judge's classes, where empty means as published. `rounds`: timed repetitions after one warm-up.
    """

    name: str
    networks: Mapping[str, Network]
    frames: int
    height: int
    width: int
    text: int
    square: int  # side of the matrix product
    copied: int  # bytes of the device copy
    images: int
    image_side: int
    vae: Mapping[str, Any] = field(default_factory=dict)
    umt5: Mapping[str, Any] = field(default_factory=dict)
    qalign: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 3

    @property
    def tokens(self) -> int:
        """Video tokens of a chunk: patches of 2 x 2 latents."""
        return self.frames * (self.height // 2) * (self.width // 2)

    @property
    def pixel_frames(self) -> int:
        """Video frames of a chunk, 4n + 1."""
        return FRAMES_PER_LATENT * (self.frames - 1) + 1

    def config(self, size: str) -> dict[str, Any]:
        """Arguments of diffusers' transformer for the network of this name."""
        network = self.networks[size]
        return {
            "num_attention_heads": network.heads,
            "attention_head_dim": network.width // network.heads,
            "ffn_dim": network.ffn,
            "num_layers": network.layers,
            "text_dim": network.text_width,
            "freq_dim": network.time_width,
        }

    def work(self, size: str, recompute: Recompute = "none") -> Work:
        """Operations on one chunk's tokens, forward and in a training step."""
        return work(self.networks[size], self.tokens, self.frames, self.text, recompute)

    def merged_forward(self, size: str) -> float:
        """Operations of a forward pass whose LoRA is merged into the weights."""
        counted = self.work(size)
        return counted.forward - counted.lora

    def forward_bytes(self, size: str) -> float:
        """Peak memory of a forward pass in half precision, as `omniavatar generate --plan` forecasts it; with the LoRA
        beside the weights."""
        network, job = self.networks[size], Job(PIXELS * self.height, PIXELS * self.width, self.pixel_frames)
        held = transformer_bytes(network, LoadConfig(), HALF)
        return (
            held.outside
            + held.block * network.layers
            + lora_bytes(network, HALF)
            + sampling_working(network, job, HALF)
        )

    def step_bytes(self, size: str, recompute: Recompute) -> float:
        """Peak device memory of a training step, as `omniavatar train --plan` forecasts it."""
        return memory(self.networks[size], self.tokens, TRAINED, recompute, ranks=1).total


_SMALL = Network(width=32, ffn=48, layers=4, heads=2, text_width=24, time_width=32, rank=4, audio_dim=64)
TINY = Sizes(
    name="tiny",
    networks={"1.3B": replace(_SMALL, layers=2), "14B": _SMALL},  # of two blocks none has an audio layer
    frames=2,
    height=4,
    width=4,
    text=12,
    square=64,
    copied=2**20,
    images=2,
    image_side=32,
    vae={"base_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1},
    umt5={"vocab_size": 512, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3},
    qalign={
        "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "visual_config": {
            "visual_model": {
                "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2,
                "image_size": 32, "patch_size": 8,
            },
            "visual_abstractor": {
                "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 1,
                "grid_size": 4, "num_learnable_queries": 4,
            },
        },
    },
    rounds=1,
)  # fmt: skip
