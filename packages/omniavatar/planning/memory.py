"""Peak memory of a generation by stage, in bytes, before anything is loaded.

d width, f feed-forward, N blocks, L video tokens of a chunk, n text tokens; e bytes of a value (2 or 4).

    weights      e a value; norms, modulation tables and the time embedding 4. int8: 1 a value of the blocks' linears
    forward      L (e (2 f + 6 d)) while the feed-forward runs, or L (12 + 7 e) d where a float32 copy is modulated
    text         KV cache 2 N n d e for each of the prompt and the negative prompt
    VAE          UNITS tensors of the picture's (or the tile's) size with `base` channels, whatever the length

Activations are counts of tensors taken from the real modules at full width, without values (device "meta"), and from
the anonymous memory of the process on a CPU, where kernels keep reordered copies. Weights that stay mapped from their
files are not counted: the system gives up these pages when memory is short. Not counted on a GPU: its context and
fragmentation (a tenth is left free), and work space of the convolutions.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

from common.constants import FPS
from omniavatar.config import GenerateConfig, LoadConfig
from omniavatar.planning.network import FLOAT, HALF, PATCH, Network, Networks, TextSizes, parameters
from omniavatar.planning.tiles import Tiles, plan_tiles

PROCESS = 450_000_000  # anonymous bytes of the process with its libraries, before weights
TEXT_LENGTH = 512  # tokens that the blocks attend to, padded
PIXELS = 8  # a latent's side
FLOAT_COPIES = 3  # of the largest weight, while a LoRA is merged into it
# Tensors of (tile pixels x base channels) that the VAE holds at its peak, by the frames that it has seen.
ENCODE_UNITS = {HALF: {1: 10.1, 5: 34.7, 9: 39.1}, FLOAT: {1: 10.1, 5: 31.7, 9: 37.0}}
DECODE_UNITS = {HALF: {1: 18.1, 5: 50.8, 9: 53.1}, FLOAT: {1: 18.1, 5: 47.8, 9: 51.0}}
# On a CPU the convolutions reorder their inputs and outputs, bf16 and float32 differently.
REORDERED = {HALF: (6.0, 6.0), FLOAT: (7.0, 14.0)}  # more such tensors: encoding, decoding
VIDEO_COPIES = 5  # of a chunk's video in float32, while its colours are corrected
AUDIO_COPIES = 2.5  # of the first convolution's output
IN_PASS = 2_200  # bytes a token of a pass: rotations, the latents with the condition, the velocity
IN_SAMPLER = 1_400  # bytes a token: noise, latents, velocity and condition in float32


@dataclass(frozen=True)
class Job:
    """What is generated at a time: size in pixels, frames of a chunk and of its overlap, branches of guidance and how
    many different texts they have, `batched`: branches of one forward pass; `residuals`: steps are skipped; videos of a
    batch; seconds of audio; tokens of the longest prompt."""

    height: int = 480
    width: int = 832
    frames: int = 73
    overlap: int = 13
    branches: int = 2
    texts: int = 2
    batched: int = 1
    residuals: bool = False
    batch: int = 1
    seconds: float = 60.0
    prompt_tokens: int = 200

    @property
    def latent_frames(self) -> int:
        """T."""
        return (self.frames + 3) // 4

    @property
    def tokens(self) -> int:
        """L of one branch."""
        return self.latent_frames * (self.height // 16) * (self.width // 16)


def job_of(
    config: GenerateConfig,
    height: int,
    width: int,
    frames: int,
    seconds: float = 60.0,
    audio: bool = True,
    batch: int = 1,
) -> Job:
    """The job of a config for videos of this size in pixels, `frames` a chunk; without `audio` the plain base's."""
    guided = config.guidance_from < config.guidance_to
    texts = 2 if guided and config.text_guidance != 1 else 1
    branches = texts + (guided and audio and config.text_guidance != config.audio_guidance)
    return Job(
        height=height,
        width=width,
        frames=frames,
        overlap=min(config.overlap, frames),
        branches=branches,
        texts=texts,
        batched=branches if config.batched_guidance else 1,
        residuals=config.cache_threshold > 0,
        batch=batch,
        seconds=seconds,
    )


class Stage(NamedTuple):
    """Peak of one stage: bytes of tensors on the GPU, 0 without one, and anonymous bytes of the process."""

    name: str
    device: int
    host: int


class Held(NamedTuple):
    """Bytes of the transformer's weights: of one block, and of all that is outside the blocks."""

    block: int
    outside: int


def forecast(networks: Networks, load: LoadConfig, job: Job, *, gpu: bool, half: bool) -> tuple[Stage, ...]:
    """The stages of a generation in order: loading of each network, then encoding, sampling and decoding.

    Each includes what was loaded before it and stays.
    """
    size, net = (HALF if half else FLOAT), networks.transformer
    part, lora = transformer_bytes(net, load, size), lora_bytes(net, FLOAT)
    streamed, offloaded = load.text_encoder == "streamed", load.offload == "blocks"
    blocks = part.block * net.layers
    host = blocks if gpu and offloaded else 0  # page-locked
    held = part.outside + (2 * part.block if offloaded else blocks)
    held += 0 if load.merge else lora_bytes(net, size)
    held += blocks if offloaded and not gpu else 0
    temporary = FLOAT_COPIES * FLOAT * net.width * net.ffn if lora or load.quantize != "none" else 0
    stages = []

    def add(name: str, working: int, loading: int = 0) -> None:
        """`working` bytes beside what is held, on the device or on the host without one; `loading` bytes on the host
        before they are moved."""
        on_host = PROCESS + (host + loading if gpu else held + working + loading)
        stages.append(Stage(name, held + working if gpu else 0, on_host))

    # One block at a time is copied from the map of its file and merged; an extra LoRA needs all of them at once.
    copied = blocks + part.outside - host if load.extra_lora else part.block
    add("load transformer", 0, temporary + (lora + copied if gpu else lora if load.extra_lora else 0))
    text = size * networks.text.weights
    held += 0 if streamed else text
    add("load text encoder", 0)  # copied from the map of its file tensor by tensor
    vae, audio = size * networks.vae.weights, FLOAT * networks.audio.weights
    held += vae
    add("load VAE", 0, vae if gpu else 0)
    held += audio
    add("load audio encoder", 0, audio if gpu else 0)
    add("encode text", text_working(networks.text, job, size) + (2 * size * networks.text.block if streamed else 0))
    add("encode audio", audio_working(networks, job))
    held += round(job.seconds * FPS) * networks.audio.states * FLOAT
    add("encode prefix", encode_working(networks, load, job, size, gpu))
    restored = (FLOAT + size) * net.width * net.ffn if load.quantize == "int8" else 0
    add("sample", sampling_working(net, job, size) + restored)
    add("decode", decode_working(networks, load, job, size, gpu))
    return tuple(stages)


def transformer_bytes(net: Network, load: LoadConfig, size: int) -> Held:
    """Weights of the transformer as they are kept for sampling, LoRA aside."""
    d, f = net.width, net.ffn
    # As `base` or `frozen_dit` it has no LoRA; norms, tables and the first time layers stay in float32.
    counted = parameters(net if net.variant == "base" else replace(net, variant="frozen_dit"))
    total = counted.frozen + counted.trained
    time = net.time_width * d + d + d * (d + 1)
    matrices = 8 * d * d + 2 * d * f
    block_floats = 8 * d
    block_rest = 8 * d + 4 * d + f + d
    outside = total - net.layers * (matrices + block_floats + block_rest)
    outside_floats = time + 2 * d
    rows = 9 * d + f  # outputs of the ten linears, a scale each
    stored = matrices + FLOAT * rows if load.quantize == "int8" else size * matrices
    return Held(
        block=stored + size * block_rest + FLOAT * block_floats,
        outside=size * (outside - outside_floats) + FLOAT * outside_floats,
    )


def lora_bytes(net: Network, size: int) -> int:
    """The LoRA's own weights, 0 without one."""
    if net.variant != "lora":
        return 0
    return size * net.rank * net.layers * (16 * net.width + 2 * (net.width + net.ffn))


def text_working(text: TextSizes, job: Job, size: int) -> int:
    """umT5 on the prompt and the negative prompt together: scores in float32, the gated feed-forward."""
    n, prompts = job.prompt_tokens, job.batch + 1
    scores = prompts * text.heads * n * n * (FLOAT + size)
    return scores + prompts * n * size * (3 * text.ffn + 6 * text.width)


def audio_working(networks: Networks, job: Job) -> int:
    """wav2vec2 on the whole audio: its first convolution has a value every five samples, in float32."""
    audio = networks.audio
    first = round(job.seconds * 16_000 / 5) * audio.convolution * FLOAT
    return round(AUDIO_COPIES * first)


def sampling_working(net: Network, job: Job, size: int) -> int:
    """A forward pass of the transformer, and what the sampler keeps from step to step."""
    d, tokens = net.width, job.batch * job.tokens
    block = max(size * (2 * net.ffn + 6 * d), (3 * FLOAT + 7 * size) * d)
    cache = job.batch * job.texts * TEXT_LENGTH * (2 * net.layers * d * size + d * size + net.text_width * FLOAT)
    residuals = job.batch * job.branches * job.tokens * d * size if job.residuals else 0
    in_pass = job.batched * (block + IN_PASS + PATCH * net.channels * FLOAT)
    return tokens * (in_pass + IN_SAMPLER) + cache + residuals


def encode_working(networks: Networks, load: LoadConfig, job: Job, size: int, gpu: bool = True) -> int:
    """The VAE on the frames that a chunk starts from: the image, then the overlap."""
    tile = _tile_pixels(networks, load, job)
    video = job.overlap * job.height * job.width * 3 * (size + FLOAT)
    units = _units(ENCODE_UNITS[size], job.overlap) + (0 if gpu else REORDERED[size][0])
    return job.batch * (round(units * size * networks.vae.base * tile) + video)


def decode_working(networks: Networks, load: LoadConfig, job: Job, size: int, gpu: bool = True) -> int:
    """The VAE's decoder on a chunk, or the correction of the decoded video, whichever holds more."""
    tile, tiles = _tile_pixels(networks, load, job), _tiles(load, job)
    video = job.frames * job.height * job.width * 3
    shared = 1.0 if tiles is None else _shared(tiles, job)
    units = _units(DECODE_UNITS[size], job.frames) + (0 if gpu else REORDERED[size][1])
    decoder = max(units * size * networks.vae.base * tile + shared * video * size, (shared + 4) * video * size)
    return round(job.batch * max(decoder, VIDEO_COPIES * FLOAT * video))


def _units(table: dict[int, float], frames: int) -> float:
    return table[max(seen for seen in table if seen <= frames)]


def _tiles(load: LoadConfig, job: Job) -> Tiles | None:
    return plan_tiles(job.height // PIXELS, job.width // PIXELS, load.largest_tile) if load.tiled_vae else None


def _shared(tiles: Tiles, job: Job) -> float:
    """Area of all tiles by the area of the picture: their overlaps are decoded twice."""
    rows = -(-(job.height // PIXELS) // tiles.down)
    columns = -(-(job.width // PIXELS) // tiles.across)
    return rows * columns * tiles.height * tiles.width * PIXELS**2 / (job.height * job.width)


def _tile_pixels(networks: Networks, load: LoadConfig, job: Job) -> float:
    tiles = _tiles(load, job)
    pixels = job.height * job.width if tiles is None else tiles.height * tiles.width * PIXELS**2
    return pixels / networks.vae.patch**2
