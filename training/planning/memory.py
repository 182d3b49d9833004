"""Memory of a rank during a training step, in bytes, by ZeRO stage and gradient checkpointing.

t trained parameters (float32), N ranks, L tokens of a micro-batch on a rank (its share where several ranks split
each sample), d width, f width of the feed-forward.

    stage     trained weights   master copy   gradients   two moments   frozen weights
    0         4t                              4t          8t            whole
    1, 2      4t                4t/N          4t/N        8t/N          whole
    3         4t/N              4t/N          4t/N        8t/N          1/N, plus what is currently gathered

The master copy equals the weights and is DeepSpeed 0.19.8's own: its test for "already there" compares a device with a
string, so stage 3 keeps one too.

With `hpz_ranks` H a rank holds another 1/H of all weights. What is offloaded is in host memory.

Activations are counts of tensors of the tokens' size, taken from the real block (`KEPT`, `WORKING`): kernels that fuse
several steps hold less, so on a GPU these are upper bounds. Not counted: what the process holds besides its tensors
(CUDA context, communication, fragmentation).
"""

from dataclasses import dataclass
from typing import NamedTuple

from omniavatar.config import Recompute
from omniavatar.planning.network import (
    FLOAT,
    HALF,
    PACKED,
    PATCH,
    Network,
    Parameters,
    audio_layers,
    parameters,
)
from training.config import EngineConfig

WAYS = {"full": "full", "base": "full", "lora": "lora", "frozen_dit": "frozen_dit"}


class PerToken(NamedTuple):
    """Bytes per token: `width` times d and `ffn` times f."""

    width: int
    ffn: int


# (what is trained, autocast) -> all that a block keeps for its backward pass without recomputation ...
KEPT = {
    ("lora", True): PerToken(50, 4),
    ("lora", False): PerToken(60, 8),
    ("frozen_dit", True): PerToken(36, 2),
    ("frozen_dit", False): PerToken(48, 4),
    ("full", True): PerToken(70, 4),
    ("full", False): PerToken(88, 8),
}
# ... and the peak of one block during recomputation and backward pass, with what lies outside the blocks.
WORKING = {
    ("lora", True): PerToken(70, 10),
    ("lora", False): PerToken(65, 16),
    ("frozen_dit", True): PerToken(60, 2),
    ("frozen_dit", False): PerToken(60, 10),
    ("full", True): PerToken(89, 4),
    ("full", False): PerToken(93, 12),
}
LAST = 26  # bytes per token and width outside the blocks between forward and backward pass, without recomputation


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step."""

    frozen: int
    trained: int
    gradients: int
    optimizer: int  # moments, and from stage 1 on the master copy
    buffers: int  # for reduction, and weights gathered at stage 3
    kept: int  # activations kept for the backward pass
    working: int  # of the block being computed
    host: int = 0  # offloaded to host memory

    @property
    def states(self) -> int:
        """What persists from step to step."""
        return self.frozen + self.trained + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it that is on the device."""
        return self.states + self.buffers + self.kept + self.working


def memory(network: Network, tokens: int, engine: EngineConfig, recompute: Recompute, ranks: int) -> Memory:
    """Memory of one rank while it trains a micro-batch of `tokens` video tokens, all samples together."""
    size, stage = parameters(network), engine.stage
    bf16 = engine.frozen_dtype == "bf16"
    frozen = FLOAT * size.frozen_fp32 + (HALF if bf16 else FLOAT) * (size.frozen - size.frozen_fp32)
    trained = FLOAT * size.trained
    gradients, master = (trained // ranks, trained // ranks) if stage >= 1 else (trained, 0)
    optimizer = master + (2 * trained // ranks if stage >= 1 else 2 * trained)
    own = -(-tokens // engine.sequence_parallel)
    kept, working = activations(network, own, engine.autocast == "bf16", recompute)
    if engine.sequence_parallel > 1:  # query, key and value of the self-attention, sent and received
        working += own * 6 * network.width * (HALF if engine.autocast == "bf16" else FLOAT)
    host = own * (network.layers - 1) * network.width * (HALF if engine.autocast == "bf16" else FLOAT)
    host = host if recompute == "offload" else 0
    weights = {"frozen": _held(frozen, engine, ranks), "trained": _held(trained, engine, ranks)}
    if engine.offload_parameters:
        host, weights = host + sum(weights.values()), {"frozen": 0, "trained": 0}
    if engine.offload_optimizer:
        host, gradients, optimizer = host + gradients + optimizer, 0, 0
    return Memory(
        **weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=_buffers(size, engine, frozen + trained, ranks),
        kept=kept,
        working=working,
        host=host,
    )


def _held(weights: int, engine: EngineConfig, ranks: int) -> int:
    if engine.stage < 3:
        return weights
    return weights // ranks + (weights // engine.hpz_ranks if engine.hpz_ranks > 1 else 0)


def _buffers(size: Parameters, engine: EngineConfig, weights: int, ranks: int) -> int:
    if engine.stage == 0:
        return 0  # reduces after the backward pass, when the activations are freed
    bucket = FLOAT * engine.reduce_bucket
    if engine.stage < 3 or (ranks == 1 and not engine.offload_parameters):
        return bucket
    # Frozen and trained weights are gathered alike: their mean size.
    everything = size.frozen + size.trained
    return bucket + weights * min(engine.live_parameters, everything) // everything


def activations(network: Network, tokens: int, autocast: bool, recompute: Recompute) -> tuple[int, int]:
    """Bytes kept by all blocks for the backward pass, and working bytes of one block and outside the blocks."""
    d, way, unit = network.width, (WAYS[network.variant], autocast), HALF if autocast else FLOAT
    # Under autocast the forward pass holds every trained weight in half precision as well.
    cast = HALF * parameters(network).trained if autocast else 0
    small, audio = _small(network, unit), _audio_attention(network, autocast)
    ends = unit * PATCH * (network.inputs + network.channels)
    if recompute == "none":
        per_block = KEPT[way].width * d + KEPT[way].ffn * network.ffn + small
        kept = tokens * (per_block * network.layers + audio * audio_layers(network))
        return kept + cast, tokens * (LAST * d + 3 * ends)
    working = WORKING[way].width * d + WORKING[way].ffn * network.ffn + small + audio + ends
    # Self-attention keeps its output, and a float32 per token and head.
    outputs = unit * d + FLOAT * network.heads if recompute == "selective" else 0
    blocks = 1 if recompute == "offload" else network.layers
    return tokens * blocks * (unit * d + outputs), max(tokens * (working - outputs), cast)


def _small(network: Network, unit: int) -> int:
    """Bytes per token of the LoRA's narrow tensors, the norms' statistics and the attentions' normalisers."""
    narrow = 8 * unit * network.rank if network.variant == "lora" else 0
    return narrow + 9 * FLOAT + 2 * FLOAT * network.heads


def _audio_attention(network: Network, autocast: bool) -> int:
    """Bytes per token that a block's attention to audio adds; a projection of the audio adds none."""
    if network.variant == "base" or network.entry != "cross_attention":
        return 0
    return (3 if autocast else 4) * network.width + (6 if autocast else 8) * PACKED[network.entry]
