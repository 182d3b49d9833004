"""Generation of one video file from a request, with a JSON description of how it was made."""

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.process.imports import large_imports

with large_imports():
    from omniavatar.generate import chunk_starts, draw_portrait, stream_video

import numpy as np

from common.constants import FPS, SAMPLES_PER_FRAME
from common.media.audio import read_audio
from common.media.video import read_video
from common.runs import RunFolder, fingerprint
from omniavatar.config import BASE_ROLES, GENERATION_ROLES, GenerateConfig, Request
from omniavatar.models import AvatarModels, ModelPaths, load_models
from omniavatar.planning.job import job_for
from omniavatar.video.images import fit_image, to_frames
from omniavatar.video.inputs import Inputs, with_lead_in
from omniavatar.video.scene import frame_size, frames_of
from omniavatar.video.video_file import (
    audio_track,
    settings_mark,
    write_avatar_video,
    write_portrait,
    write_settings,
)
from pipelines.models.lock import model_hash

Loader = Callable[[], AvatarModels]


def animate(
    request: Request,
    inputs: Inputs,
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    out: Path,
    cache: Path,
    preset: str = "",
    load: Loader | None = None,
    measure: bool = False,
) -> None:
    """Write the mp4 `out`, generated in overlapping chunks that are cached in `cache`, and its description as JSON.

    `inputs` is what `read_request` made of the request; whether `out` can be written is for `check_target` to tell.
    `models` has the roles of generation; with `measure` the finished video is decoded to measure its drift, for which
    `models` may also have face_detector and face_identity. `preset` is the name of the settings, for the description;
    `load` returns networks that are loaded already. A portrait that the base has to draw is written as PNG. Of several
    processes that generate one video together only rank 0 writes. Raises what the loaders and `stream_video` raise.
    """
    image = inputs.image if inputs.image is not None else _draw(inputs, sampling, models, out)
    count = frames_of(with_lead_in(inputs.audio.wave, sampling)) + sampling.keep_reference
    loaded = load() if load else load_avatar(models, sampling, image.shape[:2], count / FPS)
    height, width = frame_size(loaded, image, sampling)
    pieces = stream_video(loaded, image, inputs.audio.wave, inputs.prompt, sampling, cache)
    if loaded.rank:
        deque(pieces, maxlen=0)
        return
    track = audio_track(inputs.audio.track, sampling, inputs.audio.rate)
    hashes = {role: model_hash(path) for role in GENERATION_ROLES if (path := models[role])}
    made_with = settings_mark(sampling, preset, hashes)
    write_avatar_video(out, (frame for piece in pieces for frame in piece), track, inputs.audio.rate, count, made_with)
    starts = chunk_starts(count, height, width, sampling)
    facts: dict[str, Any] = {
        "image": str(request.image or out.with_suffix(".png")),
        "audio": str(request.audio or ""),
        "sha256": inputs.sha256,
        "prompt": request.prompt,
        "preset": preset,
        "models": hashes,
        "frames": count,
        "chunk_starts": starts,
    }
    if measure:
        from pipelines.generate.measure import measure_drift  # needs the metrics of eval

        reference = to_frames(fit_image(image, height, width)[:, None])[0]
        facts["drift"] = measure_drift(out, reference, starts, models)
    write_settings(out, sampling, facts)


def load_avatar(
    models: Mapping[str, Path | None],
    config: GenerateConfig,
    image: tuple[int, ...] | None = None,
    seconds: float = 60.0,
) -> AvatarModels:
    """The networks of generation with their adapter, in a memory mode that fits videos of this length from an image of
    this height and width, or from any. Raises what the loaders raise."""
    size = (image[0], image[1]) if image else None
    return load_models(model_paths(models, models["adapter"]), config.load, job_for(config, size, seconds))


def model_paths(models: Mapping[str, Path | None], adapter: Path | None) -> ModelPaths:
    """The roles of generation as ModelPaths; `adapter` None is the text-to-video base."""
    return ModelPaths(**{role: Path(models[role] or "") for role in BASE_ROLES}, adapter=adapter and Path(adapter))


def _draw(inputs: Inputs, sampling: GenerateConfig, models: Mapping[str, Path | None], out: Path) -> np.ndarray:
    # The base is released before the avatar model is loaded: both together need twice the memory.
    job = job_for(sampling, (64, 64), audio=False, frames=sampling.portrait_frames)
    base = load_models(model_paths(models, None), sampling.load, job)
    portrait = draw_portrait(base, inputs.prompt, sampling)
    if base.rank == 0:
        write_portrait(out.with_suffix(".png"), portrait)
    return portrait


def opening(run: RunFolder, clip_id: str, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """First frame of a clip and the audio of the `frames` frames after it."""
    path = run.clips / f"{clip_id}.mp4"
    wave = read_audio(path)[SAMPLES_PER_FRAME : (frames + 1) * SAMPLES_PER_FRAME]
    return read_video(path, end=1 / 25)[0], wave


def clip_seed(clip_id: str) -> int:
    """A seed derived from the clip, so that it gets the same noise in every run and method."""
    return int(fingerprint(clip_id), 16) % 1_000_000
