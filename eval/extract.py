"""What the networks see of a video: decoded once, each extractor's output kept under the hash of all it depends on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from common.ledger import Outcome
from common.media import MediaError, read_audio, read_video
from common.runs import atomic_write, fingerprint
from eval.metrics.quality import quality_of_clip
from eval.metrics.sync import SyncJudge, SyncRules, UnscorableError
from eval.records import Arrays
from perception.extractors import clip_extractor, frame_extractor
from perception.faces import load_face_detector
from perception.features import FeatureError
from perception.qalign import load_qalign
from perception.syncnet import SyncNetError, load_syncnet

logger = logging.getLogger(__name__)

Models = Mapping[str, Path]


@dataclass(frozen=True)
class FeatureConfig:
    """Which frames and windows the networks see; two protocols, never mixed in one table.

    `paper`: FID on every frame, FVD on one window from the start. `strict`: FID on 16 frames spread over the clip
    without the first (a copy of the input picture), FVD on up to 8 windows end to end. How each resizes is in
    `perception.features`. `fvd_stride`: frames between two frames of a window.
    """

    protocol: Literal["paper", "strict"] = "paper"
    fvd_stride: int = 1
    sync: SyncRules = SyncRules()


@dataclass(frozen=True)
class Sight:
    """One decoded video: frames (T, H, W, 3) uint8 RGB at 25 fps and the sound (n,) it is judged against, 16 kHz."""

    frames: np.ndarray
    wave: np.ndarray


Extract = Callable[[Sight], Arrays]


@dataclass(frozen=True)
class Extractor:
    """A network (or two) and how to run it: `load(config, models)` gives the function from a Sight to arrays.

    It cannot run without the roles it `needs`, `uses` others when they are there, and depends on `settings` of the
    configuration and, where it `hears`, on the sound.
    """

    name: str
    version: str
    needs: tuple[str, ...]
    uses: tuple[str, ...]
    settings: tuple[str, ...]
    hears: bool
    load: Callable[[FeatureConfig, Models], Extract]

    def missing(self, hashes: Mapping[str, str]) -> list[str]:
        """Roles without which this extractor cannot run."""
        return [role for role in self.needs if role not in hashes]

    def key(self, config: FeatureConfig, hashes: Mapping[str, str], unit: Mapping[str, str]) -> str:
        """16 hex digits over the extractor, its settings and weights and the bytes it looks at."""
        weights = {role: hashes.get(role) for role in self.needs + self.uses}
        sound = unit["audio_sha256"] if self.hears else None
        settings = {name: getattr(config, name) for name in self.settings}
        return fingerprint([self.name, self.version, settings, weights, unit["video_sha256"], sound])


def frame_choice(count: int, config: FeatureConfig) -> np.ndarray:
    """Indices of the frames FID looks at in a clip of `count` frames."""
    if config.protocol == "paper":
        return np.arange(count)
    return np.unique(np.linspace(min(1, count - 1), count - 1, 16).round().astype(int))


def _load_fid(config: FeatureConfig, models: Models) -> Extract:
    features = frame_extractor(models["fid_features"], config.protocol)
    return lambda sight: {"features": features(sight.frames[frame_choice(len(sight.frames), config)])}


def _load_fvd(config: FeatureConfig, models: Models) -> Extract:
    features = clip_extractor(models["fvd_features"], config.protocol, config.fvd_stride)
    return lambda sight: {"features": features(sight.frames)}


def _load_sync(config: FeatureConfig, models: Models) -> Extract:
    net = load_syncnet(models["sync_scorer"])
    judge = SyncJudge(load_face_detector(models.get("face_detector")), net, config.sync)
    return lambda sight: judge.score(sight.frames, sight.wave)


def _load_quality(config: FeatureConfig, models: Models) -> Extract:
    scorer = load_qalign(models["quality_scorer"])
    return lambda sight: quality_of_clip(scorer, sight.frames)


EXTRACTORS = (
    Extractor("fid", "1", ("fid_features",), (), ("protocol",), False, _load_fid),
    Extractor("fvd", "1", ("fvd_features",), (), ("protocol", "fvd_stride"), False, _load_fvd),
    Extractor("sync", "1", ("sync_scorer",), ("face_detector",), ("sync",), True, _load_sync),
    Extractor("quality", "1", ("quality_scorer",), (), (), False, _load_quality),
)
JUDGE_ROLES = tuple(role for extractor in EXTRACTORS for role in extractor.needs + extractor.uses)


@dataclass(frozen=True)
class ExtractJob:
    """All that a worker needs to look at the videos of one run."""

    root: Path
    cache: Path
    config: FeatureConfig
    models: dict[str, Path]
    hashes: dict[str, str]

    def make(self) -> Callable[[dict], Outcome]:
        """The function from one unit (`unit video audio video_sha256 audio_sha256`) to its Outcome; loads lazily.

        Without `audio` only the extractors that need no sound run.
        """
        # One thread per worker: the number of threads changes the last digits of a convolution.
        torch.set_num_threads(1)
        loaded: dict[str, Extract] = {}
        return partial(self._look, loaded)

    def _look(self, loaded: dict[str, Extract], unit: dict) -> Outcome:
        """Fill the cache for one video; `outputs` names the cache file of each extractor."""
        sight: Sight | None = None
        files: dict[str, str] = {}
        silent = not unit["audio"]
        for extractor in EXTRACTORS:
            if extractor.missing(self.hashes) or (extractor.hears and silent):
                continue
            key = extractor.key(self.config, self.hashes, unit)
            files[extractor.name] = f"{extractor.name}/{key}.npz"
            path = self.cache / files[extractor.name]
            if path.exists():
                continue
            # One decode serves every extractor; a video that is wholly in the cache is not decoded at all.
            if sight is None:
                wave = np.zeros(0, np.float32) if silent else read_sound(self.root / unit["audio"])
                sight = Sight(read_video(self.root / unit["video"]), wave)
            if extractor.name not in loaded:
                loaded[extractor.name] = extractor.load(self.config, self.models)
            save_arrays(path, run_extractor(loaded[extractor.name], sight))
        return Outcome(unit["unit"], "kept", outputs={"files": files})


def read_sound(path: Path) -> np.ndarray:
    """The sound (n,) at 16 kHz; none at all for a file without a sound track, whose pictures can still be judged."""
    try:
        return read_audio(path)
    except MediaError as error:
        if error.kind != "no_audio":
            raise
        return np.zeros(0, np.float32)


def run_extractor(extract: Extract, sight: Sight) -> Arrays:
    """The extractor's arrays with `status` ok, or the reason why it has no value for this clip."""
    try:
        return {**extract(sight), "status": np.array("ok")}
    except (UnscorableError, FeatureError, SyncNetError) as reason:
        return {"status": np.array(str(reason))}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def load_arrays(path: Path) -> Arrays:
    """Read what `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
