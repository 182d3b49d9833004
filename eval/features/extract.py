"""What the networks see of a video: decoded once, each extractor's output kept under the hash of all it depends on."""

import logging
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.ledger.store import Outcome
from common.runs import disk_guard
from eval.config import FeatureConfig
from eval.features.decoded_video import DecodedVideo, decode_for_metrics
from eval.features.extractors import EXTRACTORS, Extract, Extractor
from eval.features.records import Arrays, UnscorableError
from perception.features.nets import FeatureError
from perception.sync.syncnet import SyncNetError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExtractJob:
    """All that a worker needs to look at the videos of one run."""

    root: Path
    cache: Path
    config: FeatureConfig
    models: dict[str, Path]
    hashes: dict[str, str]

    def make(self) -> Callable[[dict], Outcome]:
        """The function from one unit to its Outcome; networks are loaded when they are first needed.

        A unit names `video audio real`, each with its hash `video_sha256 ...`, and `extractors`, those that are to look
        at it; of these only run what the protocol asks for, weights allow and, audio or real being "", needs neither.
        """
        # One thread per worker: the number of threads changes the last digits of a convolution.
        torch.set_num_threads(1)
        loaded: dict[str, Extract] = {}
        return partial(self._look, loaded)

    @property
    def extractors(self) -> list[Extractor]:
        """Those that the protocol asks for and that have their weights."""
        return [e for e in EXTRACTORS if e.wanted(self.config) and not e.missing(self.hashes)]

    def _look(self, loaded: dict[str, Extract], unit: dict) -> Outcome:
        """Fill the cache for one video; `outputs` names the cache file of each extractor."""
        sight: DecodedVideo | None = None
        files: dict[str, str] = {}
        for extractor in self.extractors:
            if extractor.name not in unit["extractors"] or not all(unit[kind] for kind in extractor.reads):
                continue
            key = extractor.key(self.config, self.hashes, unit)
            files[extractor.name] = f"{extractor.name}/{key}.npz"
            path = self.cache / files[extractor.name]
            if not is_lost(path):
                continue
            # One decode serves every extractor; a video that is wholly in the cache is not decoded at all.
            if sight is None:
                sight = decode_for_metrics(self.root, unit)
            if extractor.name not in loaded:
                loaded[extractor.name] = extractor.load(self.config, self.models)
            save_arrays(path, run_extractor(loaded[extractor.name], sight))
        return Outcome(unit["unit"], "kept", outputs={"files": files})


def run_extractor(extract: Extract, sight: DecodedVideo) -> Arrays:
    """The extractor's arrays with `status` ok, or the reason why it has no value for this clip."""
    try:
        return {**extract(sight), "status": np.array("ok")}
    except (UnscorableError, FeatureError, SyncNetError) as reason:
        return {"status": np.array(str(reason))}


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an npz file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    # Not synced as results are: there are many, and what a power cut spoils is found by its checksum and made again.
    with disk_guard(path):
        np.savez(temporary, **arrays)
        os.replace(temporary, path)


def is_lost(path: Path) -> bool:
    """Whether a file of `save_arrays` is absent or damaged."""
    if not zipfile.is_zipfile(path):
        return True
    with zipfile.ZipFile(path) as stored:
        return stored.testzip() is not None


def load_arrays(path: Path) -> Arrays:
    """Read what `save_arrays` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
