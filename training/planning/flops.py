"""Floating-point operations of a forward pass and of a training step; a multiply-add counts as two.

Letters: L video tokens of one sample, n text tokens (padded), d width, f width of the
feed-forward, N blocks.

    every linear       2 * rows * inputs * outputs
    self-attention     4 N d L^2            to the text: 4 N d L n
    backward           twice the forward of an attention; of a linear once for its input and once for its weight,
                       each only where that gradient is needed: a frozen base has no weight gradients
    recomputation      one more forward of the blocks; "selective" spares the self-attention

Not counted: what a fused attention kernel recomputes in its own backward pass (half an attention more), norms,
rotations and other elementwise work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from common.constants import FRAMES_PER_LATENT
from omniavatar.config import Recompute
from omniavatar.planning.network import PACKED, PATCH, Network, audio_layers


class Linear(NamedTuple):
    """As many `matrices` (outputs, inputs), each on `rows` rows; `in_block`: recomputed when blocks are."""

    rows: int
    inputs: int
    outputs: int
    matrices: int
    trained: bool
    input_learns: bool
    in_block: bool
    lora: bool = False

    @property
    def forward(self) -> int:
        """Operations of the forward pass."""
        return 2 * self.rows * self.inputs * self.outputs * self.matrices

    @property
    def backward(self) -> int:
        """Operations of the backward pass."""
        return self.forward * (self.trained + self.input_learns)


@dataclass(frozen=True)
class Work:
    """Operations on one sample. `step` counts nothing twice (for MFU), `executed` adds recomputation (for HFU)."""

    linear: int
    self_attention: int
    cross_attention: int
    lora: int
    backward: int
    recomputed: int

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.linear + self.self_attention + self.cross_attention + self.lora

    @property
    def step(self) -> int:
        """Forward and backward pass, nothing computed twice."""
        return self.forward + self.backward

    @property
    def executed(self) -> int:
        """The same plus what gradient checkpointing recomputes."""
        return self.step + self.recomputed


def work(network: Network, tokens: int, frames: int, text: int = 512, recompute: Recompute = "none") -> Work:
    """The work of one sample of `tokens` video tokens in `frames` latent frames, with `text` text tokens."""
    weights = list(linears(network, tokens, frames, text))
    per_pair = 4 * network.layers * network.width * tokens
    self_attention, cross_attention = per_pair * tokens, per_pair * text + _audio_attention(network, tokens)
    attention = self_attention + cross_attention
    blocks = sum(weight.forward for weight in weights if weight.in_block) + attention
    again = {"none": 0, "selective": blocks - self_attention, "full": blocks, "offload": blocks}
    return Work(
        linear=sum(weight.forward for weight in weights if not weight.lora),
        self_attention=self_attention,
        cross_attention=cross_attention,
        lora=sum(weight.forward for weight in weights if weight.lora),
        backward=sum(weight.backward for weight in weights) + 2 * attention,
        recomputed=again[recompute],
    )


def linears(network: Network, tokens: int, frames: int, text: int) -> Iterator[Linear]:
    """Every linear of the model and how many rows it is given; a convolution over patches is one too."""
    d, f, n, whole = network.width, network.ffn, network.layers, network.whole
    yield Linear(tokens, d, d, 6 * n, whole, True, True)  # q k v o of self-attention, q o of the other
    yield Linear(text, d, d, 2 * n, whole, whole, True)  # k v of the text
    yield Linear(tokens, d, f, 2 * n, whole, True, True)  # up and down
    if network.variant == "lora":
        yield from _lora(network, tokens, text)
    yield Linear(tokens, PATCH * network.inputs, d, 1, True, False, False)
    yield Linear(tokens, d, PATCH * network.channels, 1, whole, True, False)
    yield Linear(text, network.text_width, d, 1, whole, False, False)
    yield Linear(text, d, d, 1, whole, whole, False)
    yield Linear(1, network.time_width, d, 1, whole, False, False)
    yield Linear(1, d, d, 7, whole, whole, False)  # the time's second layer, and its six modulations
    if network.variant != "base":
        yield from _audio(network, tokens, frames)


def _lora(network: Network, tokens: int, text: int) -> Iterator[Linear]:
    d, f, r, n = network.width, network.ffn, network.rank, network.layers
    for inputs, down, outputs, up in ((d, 7, d, 7), (f, 1, f, 1)):
        yield Linear(tokens, inputs, r, down * n, True, True, True, True)
        yield Linear(tokens, r, outputs, up * n, True, True, True, True)
    yield Linear(text, d, r, 2 * n, True, False, True, True)
    yield Linear(text, r, d, 2 * n, True, True, True, True)


def _audio(network: Network, tokens: int, frames: int) -> Iterator[Linear]:
    d, hidden, layers = network.width, PACKED[network.entry], audio_layers(network)
    if network.entry == "cross_attention":
        yield Linear(FRAMES_PER_LATENT * frames, network.audio_dim, hidden, 1, True, False, False)
        yield Linear(tokens, d, hidden, 2 * layers, True, True, True)  # q, o
        yield Linear(FRAMES_PER_LATENT * frames, hidden, hidden, 2 * layers, True, True, True)  # k, v
    else:
        yield Linear(frames, FRAMES_PER_LATENT * network.audio_dim, hidden, 1, True, False, False)
        yield Linear(frames, hidden, d, layers, True, True, True)


def _audio_attention(network: Network, tokens: int) -> int:
    """Attention of the tokens to the four audio states of their frame."""
    if network.variant == "base" or network.entry != "cross_attention":
        return 0
    return 4 * audio_layers(network) * PACKED[network.entry] * tokens * FRAMES_PER_LATENT
