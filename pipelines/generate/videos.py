"""The generate step: videos of held-out clips by every method, and one long video of an unseen face and voice.

A video of the method `adapter` starts from the first frame of a real clip and takes its audio from the second frame on,
so its frames pair with the real frames 1..n. `swapped_audio` is the same model and noise with another clip's audio,
`base` the text-to-video model from the caption alone. All are judged against the clip's own audio.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from common.clips import read_clips
from common.errors import UserError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Ledger, Outcome
from common.media.video import read_video
from common.media.write import write_video
from common.runs import RunFolder, atomic_write, sha256_file
from omniavatar.config import GENERATION_ROLES, GenerateConfig, decisive
from omniavatar.generate import generate_clips
from omniavatar.models import AvatarModels, load_models
from omniavatar.planning.job import job_for
from omniavatar.video.chunks import ClipRequest
from omniavatar.video.inputs import read_request
from omniavatar.video.target import check_target
from omniavatar.video.video_file import settings_mark, write_avatar_video
from pipelines.config import AVATAR, METHOD_ROLES, SWAPPED_AVATAR, VideosConfig
from pipelines.generate.animate import animate, clip_seed, model_paths, opening
from pipelines.generate.avatars import make_avatars, talk_files
from pipelines.models.lock import model_hash

TRUTH, FLOOR = "ground_truth", "real_vs_real"


class NoTestClipsError(UserError, ValueError):
    """There are no held-out clips to judge on."""


class VideosFailedError(UserError, RuntimeError):
    """Batches of videos failed; the first one's message is quoted, the others are in the ledger."""


def make_videos(
    config: VideosConfig,
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    run: RunFolder,
    executor: ExecutorConfig,
) -> dict[str, int]:
    """Write `videos/<method>/<clip_id>.mp4`, `videos/demo.mp4` and `videos/manifest.parquet`; finished ones are
    skipped.

    `models` has the roles of generation, with `adapter` the one to judge, and may have face_detector and face_identity
    to measure the drift of the long video. Returns the number of videos per method.
    Raises NoTestClipsError, and what the loaders of the weights raise.
    """
    if config.long is not None:
        out = run.videos / "demo.mp4"
        check_target(out, config.long)
        animate(config.long, read_request(config.long), sampling, models, out, run.cache / "chunks", measure=True)
    test = _long_enough(run, "test", config)[: config.clips]
    if len(test) < 2:
        raise NoTestClipsError(
            f"{run.clips_parquet} holds {len(test)} kept test clips of at least {config.frames + 1} frames; at least 2 "
            "are needed: curate more sources or raise split.test_clips."
        )
    others = _long_enough(run, "train", config)[: config.floor]
    write_real(run, test, TRUTH, config.frames)
    write_real(run, others, FLOOR, config.frames)
    if config.avatars is not None:
        talks = {name: _requests(test) for name in config.methods if name in (AVATAR, SWAPPED_AVATAR)}
        make_avatars(config.avatars, talks, config.long, config.frames, sampling.seed, models, run, executor)
    units = plan_units(config, test)
    stage = VideosStage(sampling, config.frames, _weights(models), run.root, config.batch)
    outcomes = run_stage(stage, units, Ledger(run.ledger), executor)
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if failed:
        raise VideosFailedError(
            f"{len(failed)} batches of videos failed, the first ({failed[0].unit}): {failed[0].message}"
        )
    return write_manifest(run, config, test, others, sampling.seed)


def plan_units(config: VideosConfig, test: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Batches of one method and one frame size, each a unit of work; the swapped audio is the next clip's."""
    sizes = defaultdict(list)
    for clip in test:
        sizes[clip["height"], clip["width"]].append(clip)
    units = []
    for method in (name for name in config.methods if name not in (AVATAR, SWAPPED_AVATAR)):
        for (height, width), clips in sorted(sizes.items()):
            for start in range(0, len(clips), config.batch):
                rows = _requests(clips)
                name = f"{method}/{height}x{width}/{start:05d}"
                units.append({"unit": name, "method": method, "clips": rows[start : start + config.batch]})
    return units


def _weights(models: Mapping[str, Path | None]) -> tuple[Weights, ...]:
    paths = {role: Path(models[role] or "") for role in GENERATION_ROLES}
    return tuple(Weights(role, path, model_hash(path)) for role, path in paths.items())


@dataclass(frozen=True)
class VideosStage(Stage[dict[str, Any]]):
    """Over the batches of `plan_units`: writes `videos/<method>/<clip_id>.mp4` of the run at `root`."""

    name = "videos"
    pool = "gpu"
    version = "1"
    sampling: GenerateConfig
    frames: int
    weights: tuple[Weights, ...]
    root: Path = no_effect()
    batch: int = no_effect()
    loaded_models: Callable[[str], AvatarModels] = loaded()  # by method

    @property
    def params(self) -> dict[str, Any]:
        """The settings without `full_last_chunk`, which does not affect these single-chunk clips: outcomes of runs from
        before it existed stay valid."""
        params = super().params
        sampling = decisive(params["sampling"])
        return params | {"sampling": {k: v for k, v in sampling.items() if k != "full_last_chunk"}}

    def load(self) -> None:
        """Weights are loaded by the first batch that needs them; `base` has no adapter."""
        torch.set_num_threads(1)
        paths = {weights.role: weights.file for weights in self.weights}

        @cache
        def load(adapter: Path | None) -> AvatarModels:
            job = job_for(self.sampling, audio=adapter is not None, frames=self.frames + 1, batch=self.batch)
            return load_models(model_paths(paths, adapter), self.sampling.load, job)

        self.hold(loaded_models=lambda method: load(None if method == "base" else paths["adapter"]))

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Generate one batch of videos."""
        run, method = RunFolder(self.root), row["method"]
        requests, voices = [], []
        for clip in row["clips"]:
            image, voice = opening(run, clip["clip_id"], self.frames)
            voices.append(voice)
            driving = opening(run, clip["other_clip_id"], self.frames)[1] if method == "swapped_audio" else voice
            requests.append(ClipRequest(image, driving, clip["caption"], clip["seed"] + self.sampling.seed))
        height, width = requests[0].image.shape[:2]
        sampling = replace(self.sampling, height=height, width=width)
        videos = generate_clips(self.loaded_models(method), requests, sampling)
        hashes = {
            weights.role: weights.sha256 for weights in self.weights if (weights.role, method) != ("adapter", "base")
        }
        made_with = settings_mark(self.sampling, models=hashes)
        for clip, voice, video in zip(row["clips"], voices, videos, strict=True):
            write_avatar_video(run.videos / method / f"{clip['clip_id']}.mp4", video, voice, made_with=made_with)
        return Outcome(row["unit"], "kept")

    def products(self, row: dict[str, Any], outcome: Outcome) -> Mapping[Path, int | None]:
        """The videos of the batch."""
        folder = RunFolder(self.root).videos / row["method"]
        return {folder / f"{clip['clip_id']}.mp4": None for clip in row["clips"]}


def _requests(clips: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [_request(clip, clips[(i + 1) % len(clips)]) for i, clip in enumerate(clips)]


def _request(clip: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    names = {"clip_id": clip["clip_id"], "sha256": clip["sha256"], "caption": clip["caption"] or ""}
    others = {"other_clip_id": other["clip_id"], "other_sha256": other["sha256"]}
    return names | others | {"seed": clip_seed(clip["clip_id"])}


def _long_enough(run: RunFolder, split: str, config: VideosConfig) -> list[dict[str, Any]]:
    rows = [row for row in read_clips(run.clips_parquet) if row["decision"] == "kept" and row["split"] == split]
    return [row for row in rows if row["duration"] * 25 >= config.frames + 1]


def write_real(run: RunFolder, clips: Sequence[Mapping[str, Any]], method: str, frames: int) -> None:
    """Real clips cut to the frames that generated videos pair with: 1..`frames`, with their audio."""
    for clip in clips:
        target = run.videos / method / f"{clip['clip_id']}.mp4"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = read_video(run.clips / target.name)[1 : frames + 1]
            write_video(target, pixels, opening(run, clip["clip_id"], frames)[1])


def write_manifest(
    run: RunFolder,
    config: VideosConfig,
    test: Sequence[Mapping[str, Any]],
    others: Sequence[Mapping[str, Any]],
    seed: int,
) -> dict[str, int]:
    """Write `videos/manifest.parquet`, the input of evaluation. Returns the number of videos per method."""
    rows = []
    for method in (TRUTH, *config.methods, FLOOR):
        for clip in others if method == FLOOR else test:
            real = f"videos/{FLOOR if method == FLOOR else TRUTH}/{clip['clip_id']}.mp4"
            files = talk_files(run, f"{method}/{clip['clip_id']}")
            kinds = ("video", "turned", "motion") if method in (AVATAR, SWAPPED_AVATAR) else ("video",)
            named = dict.fromkeys(("turned", "motion"), "")
            named |= {kind: str(files[kind].relative_to(run.root)) for kind in kinds}
            rows.append(
                {"method": method, "clip_id": clip["clip_id"], "group": clip["video_id"]}
                | {"role": METHOD_ROLES.get(method, "")}
                | {"reference": real, "audio": real, **named}
            )
    for row in rows:  # no hash: no avatar could be built, which evaluation counts as a failure
        path = run.root / row["video"]
        row |= {"seed": seed, "sha256": sha256_file(path) if path.is_file() else ""}
    table = pa.Table.from_pylist(rows)
    with atomic_write(run.videos / "manifest.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    methods = table["method"].to_pylist()
    return {method: methods.count(method) for method in dict.fromkeys(methods)}
