"""Picture + sound + prompt -> video of any length, chunk by chunk.

Video frame 0 of the first chunk is the given picture and is dropped: the frames returned start together with the sound,
one per 640 samples. (The released code keeps the picture as a frame and delays the sound by 1/25 s instead: see
`keep_reference`.)
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError
from common.progress import ProgressBar, progress
from omniavatar.config import GenerateConfig
from omniavatar.models import AvatarModels
from omniavatar.video.chunk_cache import ChunkCache
from omniavatar.video.chunks import FIRST_PREFIX, Chunk, frames_for_tokens, frames_to_remake, plan_chunks
from omniavatar.video.images import to_frames
from omniavatar.video.joins import MadeChunk, fade, finish_chunk, next_prefix
from omniavatar.video.scene import (
    ClipRequest,
    Scene,
    frame_size,
    frames_of,
    prepare,
    sample_chunk,
    seed_of,
    with_lead_in,
)


def generate_video(
    models: AvatarModels,
    image: np.ndarray,
    wave: np.ndarray,
    prompt: str,
    config: GenerateConfig,
    cache_folder: Path | None = None,
) -> np.ndarray:
    """Animate one picture to one sound of any length: uint8 RGB (frames, H, W, 3), 25 per second.

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
    """Yield the frames of `generate_video` in pieces (n, H, W, 3) as they are finished; one chunk is in memory.

    With a cache folder every finished chunk is kept, and a killed run called again goes on behind the last one: same
    frames. Noise depends on (seed, chunk) alone. Source: paper Algorithm 1, scripts/inference.py. Raises ValueError
    for unusable input or a model without audio.
    """
    if not models.transformer.has_audio:
        raise InputError("A long video was asked of the plain base; load an adapter, or use generate_clips.")
    request = ClipRequest(image, with_lead_in(wave, config), prompt)
    config = fitted(config, *frame_size(models, image, config))
    chunks = _plan(frames_of(request.wave), config)
    left = frames_of(request.wave) + config.keep_reference
    held = np.empty(0)
    for made in _chunks(models, request, chunks, config, cache_folder):
        if len(made.shared):
            held = np.concatenate([held[: -len(made.shared)], fade(held[-len(made.shared) :], made.shared)])
        ready = np.concatenate([held, made.frames]) if len(held) else made.frames
        # The end of a chunk waits for the next one, which fades into it.
        ready, held = ready[: len(ready) - config.blend], ready[len(ready) - config.blend :]
        if len(ready) and left:
            yield ready[:left]
            left -= len(ready[:left])
    if left:
        yield held[:left]


def fitted(config: GenerateConfig, height: int, width: int) -> GenerateConfig:
    """The config with the chunk length that its tokens allow at this size, and no more blending than that has room for.
    Raises ValueError when not even 5 frames fit."""
    length = config.chunk_frames or frames_for_tokens(config.max_tokens, height, width)
    return replace(config, chunk_frames=length, blend=frames_to_remake(config.blend, length, config.overlap))


def chunk_starts(frames: int, height: int, width: int, config: GenerateConfig) -> list[int]:
    """Number of the first frame that is of each chunk alone in a finished video of so many, 0 for the first."""
    config = fitted(config, height, width)
    chunks = _plan(frames - config.keep_reference, config)
    return [chunk.audio_start + chunk.remade + (config.keep_reference if chunk.index else 0) for chunk in chunks]


def _plan(audio_frames: int, config: GenerateConfig) -> list[Chunk]:
    return plan_chunks(audio_frames, config.chunk_frames, config.overlap, config.blend, config.full_last_chunk)


@torch.inference_mode()
def _chunks(
    models: AvatarModels,
    request: ClipRequest,
    chunks: Sequence[Chunk],
    config: GenerateConfig,
    cache_folder: Path | None,
) -> Iterator[MadeChunk]:
    kept = ChunkCache.of(cache_folder, models, request, config)
    # The audio encoder attends to the silence behind the audio. It is that of a full last chunk, so that shortening the
    # last chunk leaves the chunks before it as they are.
    silent = chunks[-1].shortened if len(chunks) > 1 else 0
    scene = prepare(models, [request], config, chunks[-1].audio_stop + silent)
    tail = None
    whole: ProgressBar[None] = progress(len(chunks) * config.steps, "generate")
    with whole:
        for chunk in chunks:
            made = kept.load(chunk)
            if made is None:
                name = f"chunk {chunk.index + 1} of {len(chunks)}"
                made = _make_chunk(models, scene, chunk, tail, seed_of(request, config), config, whole, name)
                if models.rank == 0:
                    kept.save(chunk, made)
            else:
                whole.update(config.steps)
            tail = made.tail
            yield made


def _make_chunk(
    models: AvatarModels,
    scene: Scene,
    chunk: Chunk,
    tail: torch.Tensor | None,
    seed: int,
    config: GenerateConfig,
    whole: ProgressBar[None],
    name: str,
) -> MadeChunk:
    prefix = scene.reference if tail is None else next_prefix(models.vae, tail, config)
    bar: ProgressBar[None] = progress(config.steps, name)

    def step() -> None:
        bar.update()
        whole.update()

    with bar:
        latents = sample_chunk(models, scene, chunk, prefix, [seed], config, step)
    return finish_chunk(models.vae, latents, chunk, tail, scene.pictures[0], config)


@torch.inference_mode()
def generate_clips(
    models: AvatarModels,
    requests: Sequence[ClipRequest | tuple[np.ndarray, np.ndarray, str]],
    config: GenerateConfig,
) -> list[np.ndarray]:
    """Make short videos in one batch, a single chunk each: uint8 RGB (ceil(N / 640), H, W, 3) per request.

    A request gives the same video in any batch. The plain base uses the prompt only (the image for its size). Nothing
    is put before the sound and no colour is corrected: these are the model's own frames. Raises ValueError unless all
    sounds have the same number of frames and all pictures end in the same size.
    """
    batch = [ClipRequest(*request) for request in requests]
    sizes = {frame_size(models, request.image, config) for request in batch}
    lengths = {frames_of(request.wave) for request in batch}
    if len(sizes) != 1 or len(lengths) != 1:
        raise ValueError(f"A batch of {len(batch)} has sizes {sizes} and lengths {lengths}; expected one of each.")
    wanted = lengths.pop()
    chunk = Chunk(0, 0, math.ceil(wanted / 4) * 4, FIRST_PREFIX)
    scene = prepare(models, batch, config, chunk.audio_stop)
    seeds = [seed_of(request, config) for request in batch]
    videos = models.vae.decode(sample_chunk(models, scene, chunk, scene.reference, seeds, config))
    return [to_frames(video[:, chunk.prefix_frames :])[:wanted] for video in videos]


@torch.inference_mode()
def draw_portrait(models: AvatarModels, prompt: str, config: GenerateConfig) -> np.ndarray:
    """A first frame for a video that has a prompt and no picture: uint8 RGB (H, W, 3), drawn by the plain base.

    It is the middle frame of a video of the config's `portrait_frames`. Raises ValueError for an avatar model, which
    needs a picture.
    """
    if models.transformer.has_audio:
        raise InputError("A portrait was asked of the avatar model, which needs one; load the base without an adapter.")
    # Only its shape counts: the base sees no picture, and without a size of the config's it is the square bucket.
    request = ClipRequest(np.zeros((64, 64, 3), np.uint8), np.zeros(1, np.float32), prompt)
    scene = prepare(models, [request], config, config.portrait_frames)
    chunk = Chunk(0, 0, config.portrait_frames - FIRST_PREFIX, FIRST_PREFIX)
    latents = sample_chunk(models, scene, chunk, scene.reference, [config.seed], config)
    return to_frames(models.vae.decode(latents)[0])[config.portrait_frames // 2]
