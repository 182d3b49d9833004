"""Generation of videos from image, audio and prompt: long ones chunk by chunk, short clips in a batch.

Video frame 0 of the first chunk is the reference image and is dropped: the frames returned start together with the
audio, one per 640 samples. (The released code keeps the image as a frame and delays the audio by 1/25 s instead: see
`keep_reference`.)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.heap import release_heap
from common.progress import ProgressBar, progress
from omniavatar.config import GenerateConfig
from omniavatar.models import AvatarModels
from omniavatar.video.chunk_cache import ChunkCache
from omniavatar.video.chunks import (
    FIRST_PREFIX,
    Chunk,
    ClipRequest,
    frames_for_tokens,
    frames_to_remake,
    plan_chunks,
    seed_of,
)
from omniavatar.video.images import to_frames
from omniavatar.video.inputs import with_lead_in
from omniavatar.video.joins import FinishedChunk, fade, finish_chunk, next_prefix
from omniavatar.video.scene import Scene, frame_size, frames_of, prepare, sample_chunk


def generate_video(
    models: AvatarModels,
    image: np.ndarray,
    wave: np.ndarray,
    prompt: str,
    config: GenerateConfig,
    cache_folder: Path | None = None,
) -> np.ndarray:
    """Animate one image to audio of any length: uint8 RGB (frames, H, W, 3), 25 per second.

    There are ceil(N / 640) frames, plus those of the config's lead-in and its reference frame; see `stream_video`.
    """
    return np.concatenate(list(stream_video(models, image, wave, prompt, config, cache_folder)))


def stream_video(
    models: AvatarModels,
    image: np.ndarray,
    wave: np.ndarray,
    prompt: str,
    config: GenerateConfig,
    cache_folder: Path | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames of `generate_video` in pieces (n, H, W, 3) as they are finished, with one chunk in memory.

    With a cache folder finished chunks are stored, and a killed call resumes after the last one with the same frames.
    Noise depends on (seed, chunk) alone. Source: paper Algorithm 1, scripts/inference.py. Raises ValueError for
    unusable input or a model without audio.
    """
    if not models.transformer.has_audio:
        raise InputError("The plain base cannot generate long videos; load an adapter, or use generate_clips.")
    request = ClipRequest(image, with_lead_in(wave, config), prompt)
    config = fitted(config, *frame_size(models, image, config))
    chunks = _plan(frames_of(request.wave), config)
    remaining = frames_of(request.wave) + config.keep_reference
    held = np.empty(0)
    for finished in _finished_chunks(models, request, chunks, config, cache_folder):
        shared = len(finished.shared)
        if shared:
            held = np.concatenate([held[:-shared], fade(held[-shared:], finished.shared)])
        ready = np.concatenate([held, finished.frames]) if len(held) else finished.frames
        # The last frames of a chunk are held back until they are faded with the next chunk's.
        ready, held = ready[: len(ready) - config.blend], ready[len(ready) - config.blend :]
        if len(ready) and remaining:
            yield ready[:remaining]
            remaining -= len(ready[:remaining])
    if remaining:
        yield held[:remaining]


def fitted(config: GenerateConfig, height: int, width: int) -> GenerateConfig:
    """The config with the chunk length that `max_tokens` allows at this size, and with `blend` limited to what such a
    chunk has room for. Raises ValueError when not even 5 frames fit."""
    length = config.chunk_frames or frames_for_tokens(config.max_tokens, height, width)
    return replace(config, chunk_frames=length, blend=frames_to_remake(config.blend, length, config.overlap))


def chunk_starts(frames: int, height: int, width: int, config: GenerateConfig) -> list[int]:
    """For each chunk of a finished video of `frames`, the first frame that comes from this chunk alone; 0 first."""
    config = fitted(config, height, width)
    chunks = _plan(frames - config.keep_reference, config)
    return [chunk.audio_start + chunk.remade + (config.keep_reference if chunk.index else 0) for chunk in chunks]


def _plan(audio_frames: int, config: GenerateConfig) -> list[Chunk]:
    return plan_chunks(audio_frames, config.chunk_frames, config.overlap, config.blend, config.full_last_chunk)


@torch.inference_mode()
def _finished_chunks(
    models: AvatarModels,
    request: ClipRequest,
    chunks: Sequence[Chunk],
    config: GenerateConfig,
    cache_folder: Path | None,
) -> Iterator[FinishedChunk]:
    cache = ChunkCache.of(cache_folder, models, request, config)
    # The audio encoder attends to the silence after the audio. It is padded as for a full last chunk, so that
    # shortening the last chunk does not change the chunks before it.
    padding = chunks[-1].shortened if len(chunks) > 1 else 0
    scene = prepare(models, [request], config, chunks[-1].audio_stop + padding)
    tail = None
    whole: ProgressBar[None] = progress(len(chunks) * config.steps, "generate")
    with whole:
        for chunk in chunks:
            finished = cache.load(chunk)
            if finished is None:
                name = f"chunk {chunk.index + 1} of {len(chunks)}"
                finished = _generate_chunk(models, scene, chunk, tail, seed_of(request, config), config, whole, name)
                if models.rank == 0:
                    cache.save(chunk, finished)
            else:
                whole.update(config.steps)
            tail = finished.tail
            yield finished


def _generate_chunk(
    models: AvatarModels,
    scene: Scene,
    chunk: Chunk,
    tail: torch.Tensor | None,
    seed: int,
    config: GenerateConfig,
    whole: ProgressBar[None],
    name: str,
) -> FinishedChunk:
    prefix = scene.reference if tail is None else next_prefix(models.vae, tail, config)
    release_heap()
    bar: ProgressBar[None] = progress(config.steps, name)

    def step() -> None:
        bar.update()
        whole.update()

    with bar:
        latents = sample_chunk(models, scene, chunk, prefix, [seed], config, step)
    return finish_chunk(models.vae, latents, chunk, tail, scene.images[0], config)


@torch.inference_mode()
def generate_clips(
    models: AvatarModels,
    requests: Sequence[ClipRequest | tuple[np.ndarray, np.ndarray, str]],
    config: GenerateConfig,
) -> list[np.ndarray]:
    """Generate short videos in one batch, a single chunk each: uint8 RGB (ceil(N / 640), H, W, 3) per request.

    A request gives the same video in any batch. The plain base uses the prompt only (the image for its size). There is
    no lead-in and no colour correction: these are the model's own frames. Raises ValueError unless all waves have the
    same number of frames and all images map to the same size.
    """
    batch = [ClipRequest(*request) for request in requests]
    sizes = {frame_size(models, request.image, config) for request in batch}
    lengths = {frames_of(request.wave) for request in batch}
    if len(sizes) != 1 or len(lengths) != 1:
        raise ValueError(f"A batch of {len(batch)} has sizes {sizes} and lengths {lengths}; expected one of each.")
    length = lengths.pop()
    chunk = Chunk(0, 0, math.ceil(length / 4) * 4, FIRST_PREFIX)
    scene = prepare(models, batch, config, chunk.audio_stop)
    seeds = [seed_of(request, config) for request in batch]
    videos = models.vae.decode(sample_chunk(models, scene, chunk, scene.reference, seeds, config))
    return [to_frames(video[:, chunk.prefix_frames :])[:length] for video in videos]


@torch.inference_mode()
def draw_portrait(models: AvatarModels, prompt: str, config: GenerateConfig) -> np.ndarray:
    """A reference image for a video that has a prompt and no image: uint8 RGB (H, W, 3), drawn by the plain base.

    It is the middle frame of a video of the config's `portrait_frames`. Raises ValueError for an avatar model, which
    needs an image.
    """
    if models.transformer.has_audio:
        raise InputError("The avatar model needs an image and cannot draw one; load the base without an adapter.")
    # Only its shape counts: the base is not conditioned on it, and without height and width it selects a square size.
    request = ClipRequest(np.zeros((64, 64, 3), np.uint8), np.zeros(1, np.float32), prompt)
    scene = prepare(models, [request], config, config.portrait_frames)
    chunk = Chunk(0, 0, config.portrait_frames - FIRST_PREFIX, FIRST_PREFIX)
    latents = sample_chunk(models, scene, chunk, scene.reference, [config.seed], config)
    return to_frames(models.vae.decode(latents)[0])[config.portrait_frames // 2]
