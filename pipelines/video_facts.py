"""What is said of a finished video beside it: the content of its models, and how far picture and likeness drifted."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from common.media import decode_video
from common.runs import hash_path, sha256_file
from eval.metrics.drift import colour_drift, identity_drift
from eval.metrics.seam import frame_jumps, seam_jumps
from eval.records import UnscorableError
from perception.extractors import identity_extractor
from pipelines.models.lock import locked_files

RECOGNISERS = ("w600k_r50.onnx", "glintr100.onnx", "rec_*.onnx")
LOOKS = 5.0  # frames a second in which a face is looked for


def model_hash(path: Path) -> str:
    """`hash_path` of a role; what was fetched and has its size still is taken from the lock file, not read again."""
    locked = {file: entry for file, entry in locked_files(path).items() if file.is_file()}
    known = {file: entry.sha256 for file, entry in locked.items() if file.stat().st_size == entry.bytes}
    if not known:
        return hash_path(path)
    root = path.resolve()
    if root.is_file():
        return known[root]
    digest = hashlib.sha256()
    for file in sorted(item for item in root.rglob("*") if item.is_file()):
        content = known[file] if file in known else sha256_file(file)
        digest.update(f"{file.relative_to(root).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def drift_report(
    video: Path, picture: np.ndarray, starts: Sequence[int], models: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Drift of colours from the `picture` (H, W, 3) it began with, jumps at the joins, and drift of likeness where
    `models` has a face_detector with a recogniser.

    Each is the fields of its metric, or {"status": why there is none}.
    """
    return {
        "colour": _scored(lambda: asdict(colour_drift(decode_video(video), picture))),
        "seam": _scored(lambda: asdict(seam_jumps(frame_jumps(decode_video(video)), starts[1:]))),
        "identity": _scored(lambda: _identity(video, models)),
    }


def _scored(figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return figures()
    except UnscorableError as error:
        return {"status": str(error)}


def _identity(video: Path, models: Mapping[str, Path | None]) -> dict[str, Any]:
    pack = models.get("face_detector")
    if pack is None:
        raise UnscorableError("no weights: models.face_detector")
    own = models.get("face_identity")
    found = [own] if own else [file for name in RECOGNISERS for file in sorted(pack.glob(name))]
    if not found:
        raise UnscorableError("no weights: models.face_identity")
    embed = identity_extractor(found[0], pack)
    rows = [embed(frame[None])[0] for frame in decode_video(video, fps=LOOKS)]
    return asdict(identity_drift(np.array(rows), fps=LOOKS))
