"""Sample videos of a training while it runs: a process of its own that animates held-out clips with exported adapters.

Each adapter in `checkpoints/adapters/step-*` animates the same clips with the same noise, once with their own audio and
once with another clip's. SyncNet scores the videos, one line per video in `logs/sample_videos.jsonl`. The training
never waits for it; killed and started again it resumes with the adapters not sampled yet.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.clips import read_clips
from common.constants import FPS
from common.errors import UserError
from common.progress import MetricLog, progress
from common.runs import RunFolder, hash_path
from eval.config import SyncRules
from eval.features.records import UnscorableError
from omniavatar.config import GenerateConfig
from pipelines.config import SamplesConfig

if TYPE_CHECKING:  # engines are imported when there is something to sample: a wrong folder is reported at once
    from eval.features.sync import SyncJudge

RIGHT, SWAPPED = "right", "swapped"


class NothingToSampleError(UserError, ValueError):
    """There are no held-out clips to animate, or no adapters to animate them with."""


def watch(
    config: SamplesConfig,
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    run: RunFolder,
    stop: Callable[[], bool],
) -> None:
    """Sample every exported adapter of `run`, the oldest first, then those exported later, until `stop()` is true.

    `models` holds the roles of generation, `sync_scorer` and optionally `face_detector`. Raises NothingToSampleError
    and what the loaders of the weights raise.
    """
    clips = held_out(run, config)
    import torch

    from pipelines.training_curves import draw_training_curves

    torch.set_num_threads(1)
    log = MetricLog(run.logs / "sample_videos.jsonl")
    judge = _load_judge(models)
    while True:
        finished = {row["step"] for row in log.rows() if row.get("last")}
        waiting = [(step, path) for step, path in exported(run) if step not in finished]
        for step, adapter in progress(waiting, "samples"):
            log.truncate(max(finished, default=-1))
            rows = list(sample(config, sampling, models, adapter, step, clips, run, judge))
            for number, row in enumerate(rows):
                log.write(**row, last=number == len(rows) - 1)
            finished.add(step)
            draw_training_curves(run, run.report / "training.png")
        if stop():
            if not finished:
                raise NothingToSampleError(
                    f"{run.checkpoints / 'adapters'} holds no exported adapter; train with "
                    "checkpoint.export_every_steps above 0."
                )
            return
        time.sleep(config.every_seconds)


def _load_judge(models: Mapping[str, Path | None]) -> "SyncJudge | None":
    scorer = models.get("sync_scorer")
    if scorer is None:
        return None
    from eval.features.sync import SyncJudge
    from perception.faces.detect import load_face_detector
    from perception.sync.syncnet import load_syncnet

    return SyncJudge(load_face_detector(models.get("face_detector")), load_syncnet(scorer), SyncRules())


def exported(run: RunFolder) -> list[tuple[int, Path]]:
    """(step, folder) of the adapters exported so far, in order."""
    folders = sorted((run.checkpoints / "adapters").glob("step-*"))
    return [(int(folder.name.removeprefix("step-")), folder) for folder in folders if folder.name[5:].isdigit()]


def held_out(run: RunFolder, config: SamplesConfig) -> list[dict[str, Any]]:
    """The first test clips that are long enough and of one size, so that they make one batch.

    Raises NothingToSampleError for fewer than two.
    """
    rows = [row for row in read_clips(run.clips_parquet) if row["decision"] == "kept" and row["split"] == "test"]
    long = [row for row in rows if round(row["duration"] * FPS) > config.frames]
    same = [row for row in long if (row["height"], row["width"]) == (long[0]["height"], long[0]["width"])]
    if len(same) < 2:
        raise NothingToSampleError(
            f"{run.clips_parquet} holds {len(same)} kept test clips of {config.frames + 1} frames and one size; at "
            "least 2 are needed: lower samples.frames or hold out more clips."
        )
    return same[: config.clips]


def sample(
    config: SamplesConfig,
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    adapter: Path,
    step: int,
    clips: Sequence[Mapping[str, Any]],
    run: RunFolder,
    judge: "SyncJudge | None",
) -> Iterator[dict[str, Any]]:
    """The videos of one adapter, below `videos/samples/step-*/`, and a row of scores for each.

    With the swapped audio a video is judged against the right one, as everywhere.
    """
    from omniavatar.generate import generate_clips
    from omniavatar.models import load_models
    from omniavatar.planning.job import job_for
    from omniavatar.video.chunks import ClipRequest
    from omniavatar.video.video_file import settings_mark, write_avatar_video
    from pipelines.generate.animate import clip_seed, model_paths, opening

    openings = [opening(run, clip["clip_id"], config.frames) for clip in clips]
    height, width = openings[0][0].shape[:2]
    settings = replace(sampling, height=height, width=width, steps=config.steps or sampling.steps)
    job = job_for(settings, frames=config.frames + 1, batch=len(clips))
    loaded = load_models(model_paths(models, adapter), sampling.load, job)
    made_with = settings_mark(settings, models={"adapter": hash_path(adapter)})
    for kind in (RIGHT, SWAPPED):
        turn = 0 if kind == RIGHT else 1
        waves = [openings[(i + turn) % len(openings)][1] for i in range(len(openings))]
        requests = [
            ClipRequest(image, wave, clip["caption"] or "", clip_seed(clip["clip_id"]))
            for clip, (image, _), wave in zip(clips, openings, waves, strict=True)
        ]
        videos = generate_clips(loaded, requests, settings)
        for clip, (_, wave), video in zip(clips, openings, videos, strict=True):
            path = run.videos / "samples" / f"step-{step:08d}" / kind / f"{clip['clip_id']}.mp4"
            write_avatar_video(path, video, wave, made_with=made_with)
            yield {"step": step, "clip_id": clip["clip_id"], "sound": kind, **_scores(judge, video, wave)}


def _scores(judge: "SyncJudge | None", video: np.ndarray, wave: np.ndarray) -> dict[str, Any]:
    if judge is None:
        return {"status": "skipped: no weights"}
    try:
        scores = judge.score(video, wave)
    except UnscorableError as reason:
        return {"status": str(reason)}
    return {"status": "ok"} | {name: float(scores[name]) for name in ("sync_c", "sync_d", "sync_offset")}
