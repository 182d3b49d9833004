"""Forecast of a rehearsal, stage by stage: memory of host and device, and bytes on the disk.

Generation is forecast by `omniavatar.planning`, the step of a training by `training.planning`. Added here, for a
training on the host: what its process holds besides, and what loading and saving take.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import cast

from common.constants import FPS
from omniavatar.config import LoadConfig, MemoryMode
from omniavatar.planning.memory import PROCESS, Job, encode_working, forecast, job_of, text_working
from omniavatar.planning.modes import choose_mode, with_mode
from omniavatar.planning.network import FLOAT, HALF, Network, parameters
from omniavatar.planning.sizes import Networks
from pipelines.recipe import Recipe
from pipelines.rehearse.shapes import Sizes
from pipelines.rehearse.stages import Clip
from training.planning.memory import memory

# Anonymous bytes, measured on a CPU: the command that starts the ranks of a training and waits; a rank with torch,
# DeepSpeed and what its heap does not give back, before weights; a piece of the tokenizer.
LAUNCHER, TRAINER, PIECE = 101_000_000, 500_000_000, 1_200
# Copies of the trained weights beside the states while they are updated: gradients in float32, temporaries of AdamW
# over all tensors at once, and heap. Measured on a CPU at 4 and 12 blocks of the 1.3B; a GPU needs them then too, but
# frees its activations before.
UPDATING = 7.3
CAPTION, PROMPT_TOKENS = 64, 110  # tokens of a drawn clip's caption, and of the released negative prompt
RUN_BYTES = 10_000_000  # of a run on the disk: clip, shards, logs, video


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of a stage: anonymous memory of its processes, tensors on the GPU (0 without one)."""

    host: int
    device: int = 0


def foresee(stage: str, networks: Networks, recipe: Recipe, clip: Clip, gpu: bool) -> Peak:
    """The forecast for a stage by name, of the rehearsal's `recipe` on these networks."""
    if stage in ("generate", "reload"):
        return _generation(networks, recipe, clip, gpu)
    if stage == "latents":
        return _latents(networks, clip, gpu)
    if stage in ("train", "resume"):
        return _training(networks.transformer, recipe, clip, gpu)
    trained = HALF * parameters(networks.transformer).trained
    return Peak(PROCESS + (trained if stage == "export" else tokenizer_bytes(networks)))


def tokenizer_bytes(networks: Networks) -> int:
    """Host memory of the tokenizer, which has about as many pieces as the text encoder's embedding rows."""
    return PIECE * networks.text.embedding // max(networks.text.width, 1)


def with_memory_mode(recipe: Recipe, networks: Networks, clip: Clip, device: float, host: float) -> Recipe:
    """The recipe with the memory mode of generation that "auto" takes with these free bytes of device and host."""
    load = recipe.generate.load
    if load.memory == "auto":
        mode = choose_mode(networks, load, _job(recipe, clip), device, host, half=True).mode
        load = replace(load, memory=cast(MemoryMode, mode))
    return replace(recipe, generate=replace(recipe.generate, load=load))


def _job(recipe: Recipe, clip: Clip) -> Job:
    job = job_of(recipe.generate, clip.height, clip.width, clip.frames, seconds=clip.frames / FPS)
    return replace(job, prompt_tokens=PROMPT_TOKENS)


def _generation(networks: Networks, recipe: Recipe, clip: Clip, gpu: bool) -> Peak:
    load = with_mode(recipe.generate.load, recipe.generate.load.memory)
    moments = forecast(networks, load, _job(recipe, clip), gpu=gpu, half=True)
    host = max(moment.host for moment in moments) + tokenizer_bytes(networks)
    return Peak(host, max(moment.device for moment in moments))


def _latents(networks: Networks, clip: Clip, gpu: bool) -> Peak:
    """The encoders together on one clip, the text encoder by way of the host."""
    text, vae = HALF * networks.text.weights, HALF * networks.vae.weights
    audio = FLOAT * networks.audio.weights
    job = replace(clip.job, prompt_tokens=CAPTION)
    working = max(text_working(networks.text, job, HALF), encode_working(networks, LoadConfig(), job, HALF, gpu))
    held = text + vae + audio + working
    # Then the constants, for which one block at a time is copied from its file in float32.
    return Peak(PROCESS + tokenizer_bytes(networks) + (text if gpu else held), held if gpu else 0)


def _training(network: Network, recipe: Recipe, clip: Clip, gpu: bool) -> Peak:
    """A rank loads the base in the type of its frozen weights, computes gradients, and updates what is trained."""
    train, count = recipe.train, parameters(network)
    step = memory(network, clip.job.tokens, train.engine, train.model.gradient_checkpointing, 1)
    if gpu:
        half = train.engine.frozen_dtype == "bf16"
        loading = FLOAT * (count.frozen_fp32 + count.trained) + (HALF if half else FLOAT) * (
            count.frozen - count.frozen_fp32
        )
        return Peak(LAUNCHER + TRAINER + loading, step.total)
    updating = round(UPDATING * FLOAT * count.trained)
    running = step.states + step.buffers + step.host + max(step.kept + step.working, updating)
    return Peak(LAUNCHER + TRAINER + running)


def network_of_sizes(sizes: Sizes) -> Network:
    """The transformer of these sizes with the published adapter."""
    return Network(sizes.width, sizes.ffn, sizes.layers, sizes.heads, sizes.text_width, audio_dim=sizes.audio_dim)


def results_bytes(steps: Collection[str], sizes: Sizes) -> int:
    """What the steps have on the disk at most: two checkpoints, an export in three layouts beside the one before it."""
    trained = FLOAT * parameters(network_of_sizes(sizes)).trained
    return RUN_BYTES + ((2 * 3 + 2 * 3) * trained + trained // 2 if "train" in steps else 0)
