"""Sizes of the networks of generation, and the number of the transformer's weights, by what is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omniavatar.config import AudioEntry, Variant, audio_blocks

FLOAT, HALF = 4, 2  # bytes
PATCH = 4  # latent pixels of a token, 2 x 2
PACKED = {"multi": 32, "single": 32, "cross_attention": 512}  # width of the packed audio


@dataclass(frozen=True)
class Network:
    """Sizes of a transformer, which part is trained, and its audio input. `channels` are those of a latent."""

    width: int
    ffn: int
    layers: int
    heads: int
    text_width: int = 4096
    time_width: int = 256
    channels: int = 16
    variant: Variant = "lora"
    rank: int = 128
    entry: AudioEntry = "multi"
    audio_dim: int = 10_752

    @property
    def inputs(self) -> int:
        """Input channels: the noisy latent and, for the avatar model, the reference and the mask."""
        return self.channels if self.variant == "base" else 2 * self.channels + 1

    @property
    def whole(self) -> bool:
        """True when every weight is trained."""
        return self.variant in ("full", "base")


@dataclass(frozen=True)
class TextSizes:
    """umT5: `weights` of them `embedding`; bytes a value in its file. The defaults are umT5-XXL's."""

    weights: int = 5_680_910_336
    embedding: int = 256_384 * 4096
    layers: int = 24
    width: int = 4096
    ffn: int = 10_240
    heads: int = 64
    stored: int = 2

    @property
    def block(self) -> int:
        """Weights of one block."""
        return (self.weights - self.embedding) // max(self.layers, 1)


@dataclass(frozen=True)
class VAESizes:
    """The autoencoder: number of weights, channels at full resolution, and pixels folded into one place there."""

    weights: int = 126_892_531
    base: int = 96
    patch: int = 1


@dataclass(frozen=True)
class AudioSizes:
    """wav2vec2: number of weights, channels of its convolutions, width, layers and feed-forward."""

    weights: int = 94_370_944
    convolution: int = 512
    width: int = 768
    layers: int = 12
    heads: int = 12

    @property
    def states(self) -> int:
        """Width of the states of one frame, of all layers together."""
        return (self.layers + 2) * self.width


@dataclass(frozen=True)
class Networks:
    """Sizes of the networks that generate together."""

    transformer: Network
    text: TextSizes = TextSizes()
    vae: VAESizes = VAESizes()
    audio: AudioSizes = AudioSizes()


@dataclass(frozen=True)
class Parameters:
    """Numbers of weights; `frozen_fp32` are the frozen ones that stay in float32 at any precision."""

    frozen: int
    frozen_fp32: int
    trained: int


def network_of(
    config: Mapping[str, Any], variant: Variant, rank: int, entry: AudioEntry, audio_dim: int = 10_752
) -> Network:
    """The network of a transformer's `config.json`, in diffusers' or in the original layout.

    Keys missing from diffusers' file have its defaults, which are the 14B model's.
    """
    original = "dim" in config
    heads = config["num_heads"] if original else config.get("num_attention_heads", 40)
    return Network(
        width=config["dim"] if original else heads * config.get("attention_head_dim", 128),
        ffn=config.get("ffn_dim", 13_824),
        layers=config.get("num_layers", 40),
        heads=heads,
        text_width=config.get("text_dim", 4096),
        time_width=config.get("freq_dim", 256),
        channels=config.get("out_dim" if original else "out_channels", 16),
        variant=variant,
        rank=rank,
        entry=entry,
        audio_dim=audio_dim,
    )


def audio_layers(network: Network) -> int:
    """How many blocks have an audio layer; none in the plain base."""
    return 0 if network.variant == "base" else len(audio_blocks(network.layers, network.entry))


def parameters(network: Network) -> Parameters:
    """How many weights there are, biases and norms included."""
    d, f, n = network.width, network.ffn, network.layers
    block = 8 * d * (d + 1) + 4 * d + (2 * d * f + f + d) + 6 * d + 2 * d
    time = network.time_width * d + d + d * (d + 1)
    text = network.text_width * d + d + d * (d + 1)
    # The bias of the patch embedding is as wide with 33 input channels as with 16.
    patch = PATCH * network.inputs * d + d
    last = 2 * d + d * PATCH * network.channels + PATCH * network.channels
    whole = n * block + time + 6 * d * (d + 1) + text + patch + last
    audio = _audio(network)
    if network.whole:
        return Parameters(0, 0, whole + audio)
    lora = network.rank * n * (16 * d + 2 * (d + f))  # eight linears from d to d, two between d and f
    trained = patch + audio + (lora if network.variant == "lora" else 0)
    return Parameters(whole - patch, n * 8 * d + 2 * d + time, trained)


def _audio(network: Network) -> int:
    if network.variant == "base":
        return 0
    c, d, h, layers = network.audio_dim, network.width, PACKED[network.entry], audio_layers(network)
    if network.entry == "cross_attention":
        return (c * h + h) + 2 * h + 4 * h + layers * (d * h + h + h * d + d + h * h + h * h + h)
    return (4 * c * h + h) + 2 * h + layers * (h * d + d)
