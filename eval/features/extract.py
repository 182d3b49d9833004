"""Feature extraction: one decode per video; each extractor's arrays are cached by the hash of all they depend on."""

import logging
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from common.errors import InputError
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.images import read_image_file
from common.media.open import MediaError
from common.media.video import read_video
from common.runs import disk_guard, temporary_beside
from common.untrusted.weight_files import check_archive
from eval.config import FeatureConfig
from eval.features.extractors import EXTRACTORS, DecodedVideo, Extract, Extractor, no_real_video
from eval.features.records import Arrays, UnscorableError
from perception.features.nets import FeatureError
from perception.sync.syncnet import SyncNetError

INPUTS = ("video", "audio", "real", "motion", "motion_reference")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractStage(Stage[dict[str, Any]]):
    """Over the videos of one run (`eval.job.units_of`): fills the cache; `files` names the file of each extractor.

    A unit names `video audio real motion motion_reference`, each with its hash `video_sha256 ...`, and `extractors`,
    those that are to look at it; of these only run what the protocol asks for, weights allow and none of whose inputs
    is "".
    """

    name = "eval"
    pool = "gpu"
    version = "2"
    reads = (*(f"{kind}_sha256" for kind in INPUTS), "extractors")
    config: FeatureConfig
    judges: tuple[Weights, ...]
    root: Path = no_effect()
    cache: Path = no_effect()
    networks: dict[str, Extract] = loaded()  # by extractor

    @property
    def params(self) -> dict[str, Any]:
        """The settings, and the version of every extractor."""
        versions = {extractor.name: extractor.version for extractor in EXTRACTORS}
        return {"config": asdict(self.config), "extractors": versions}

    @property
    def extractors(self) -> list[Extractor]:
        """Those that belong to the protocol and have their weights."""
        return [e for e in EXTRACTORS if e.is_in(self.config) and not e.missing(self.models)]

    def load(self) -> None:
        """Networks are loaded when they are first needed."""
        import torch

        # One thread per worker: the number of threads changes the last digits of a convolution.
        torch.set_num_threads(1)
        self.hold(networks={})

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Run every extractor that has no file in the cache yet."""
        video: DecodedVideo | None = None
        files: dict[str, str] = {}
        paths = {weights.role: weights.file for weights in self.judges}
        for extractor in self.extractors:
            if extractor.name not in row["extractors"] or not all(row[kind] for kind in extractor.reads):
                continue
            key = extractor.key(self.config, self.models, row)
            files[extractor.name] = f"{extractor.name}/{key}.npz"
            path = self.cache / files[extractor.name]
            if not is_lost(path):
                continue
            # One decode serves every extractor; a video that is wholly in the cache is not decoded at all.
            if video is None:
                video = decode_for_metrics(self.root, row)
            if extractor.name not in self.networks:
                self.networks[extractor.name] = extractor.load(self.config, paths)
            save_arrays(path, run_extractor(self.networks[extractor.name], video))
        return Outcome(row["unit"], "kept", outputs={"files": files})

    def product_exists(self, row: dict[str, Any], outcome: Outcome) -> bool:
        """Whether every file of the cache is still there and sound."""
        return not any(is_lost(self.cache / file) for file in outcome.outputs.get("files", {}).values())


def decode_for_metrics(root: Path, unit: Mapping[str, str]) -> DecodedVideo:
    """Decode the `video` and `audio` of a unit (paths below `root`, "" for none), and prepare its other files.

    Raises MediaError.
    """
    wave = read_audio_track(root / unit["audio"]) if unit["audio"] else np.zeros(0, np.float32)
    frames = _read_frames(root / unit["video"])
    motion = tuple(root / unit[kind] if unit[kind] else None for kind in ("motion", "motion_reference"))
    if not unit["real"]:
        return DecodedVideo(frames, wave, motion=motion)
    if unit["real_sha256"] == unit["video_sha256"]:
        return DecodedVideo(frames, wave, lambda: frames, motion)
    return DecodedVideo(frames, wave, partial(_real_frames, root / unit["real"], unit["real_sha256"]), motion)


def read_audio_track(path: Path) -> np.ndarray:
    """Audio (n,) at 16 kHz; empty for a file without an audio track, whose frames can still be judged."""
    try:
        return read_audio(path)
    except MediaError as error:
        if error.kind != "no_audio":
            raise
        return np.zeros(0, np.float32)


@lru_cache(maxsize=1)
def _real_frames(path: Path, sha256: str) -> np.ndarray:
    """Frames of the real video; the units of all methods on one clip follow each other."""
    try:
        return read_video(path)
    except (MediaError, FileNotFoundError) as error:
        return no_real_video(f": {error}")


def _read_frames(path: Path) -> np.ndarray:
    """A video, or an image as a video of one frame."""
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        return read_video(path)
    try:
        return read_image_file(path)[None]
    except InputError as error:
        raise MediaError("unreadable", str(error)) from error


def run_extractor(extract: Extract, video: DecodedVideo) -> Arrays:
    """The extractor's arrays with `status` ok, or the reason why it has no value for this clip."""
    try:
        return {**extract(video), "status": np.array("ok")}
    except (UnscorableError, FeatureError, SyncNetError) as reason:
        return {"status": np.array(str(reason))}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    # Not synced: there are many files, and one that a power cut damaged fails its checksum and is made again.
    with disk_guard(path):
        np.savez(temporary, **arrays)
        os.replace(temporary, path)


def is_lost(path: Path) -> bool:
    """Whether a file of `save_arrays` is absent, damaged (checked against its CRC) or claims more than it holds."""
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as stored:
            check_archive(path, stored)
            return any(_claims_more(stored, entry) for entry in stored.infolist()) or stored.testzip() is not None
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError):
        return True


def _claims_more(stored: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    """Whether the header of an array gives it another size than its bytes; memory would be taken by the header."""
    with stored.open(entry) as member:
        version = read_magic(member)
        read_header = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
        shape, _, dtype = read_header(member)
        return dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - member.tell()


def load_arrays(path: Path) -> Arrays:
    """Read what `save_arrays` wrote, which `is_lost` has checked."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
