"""What is said of a finished video beside it: the content of its models, and how far picture and likeness drifted."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.media.video import decode_video
from common.runs import hash_path, sha256_file
from eval.features.records import UnscorableError
from eval.metrics.drift import background_mask, colour_curves, colour_of, identity_drift, judge_colours
from eval.metrics.seam import frame_jumps, seam_jumps
from perception.faces.detect import load_face_detector
from perception.faces.identity import load_face_identity
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


@dataclass(frozen=True)
class _Faces:
    """Boxes (n, 4) of all faces in the frames looked at and embeddings (looks, E) of the largest in each, NaN where
    none is seen; None where the network is lacking."""

    boxes: np.ndarray | None
    embeddings: np.ndarray | None


def drift_report(
    video: Path, picture: np.ndarray, starts: Sequence[int], models: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Drift of colours from the `picture` (H, W, 3) it began with, of whole frames as `colour` and of what no person
    covers as `background`; jumps at the joins; drift of likeness as `identity`. The background needs a face_detector in
    `models`, the likeness also a recogniser.

    Each is the fields of its metric, or {"status": why there is none}.
    """
    faces = _look_for_faces(video, models)
    masks: list[np.ndarray | None] = [None]
    background: dict[str, Any] = {}
    try:
        masks.append(background_mask(_boxes(faces), *picture.shape[:2]))
    except UnscorableError as error:
        background = {"status": str(error)}
    whole, *behind = colour_curves(decode_video(video), masks)
    if behind:
        background = _scored(lambda: asdict(judge_colours(behind[0], colour_of(picture, masks[1]))))
    return {
        "colour": _scored(lambda: asdict(judge_colours(whole, colour_of(picture)))),
        "background": background,
        "seam": _scored(lambda: asdict(seam_jumps(frame_jumps(decode_video(video)), starts[1:]))),
        "identity": _scored(lambda: _identity(faces)),
    }


def _scored(figures: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return figures()
    except UnscorableError as error:
        return {"status": str(error)}


def _look_for_faces(video: Path, models: Mapping[str, Path | None]) -> _Faces:
    pack = models.get("face_detector")
    if pack is None:
        return _Faces(None, None)
    own = models.get("face_identity")
    found = [own] if own else [file for name in RECOGNISERS for file in sorted(pack.glob(name))]
    detector, net = load_face_detector(pack), load_face_identity(found[0]) if found else None
    boxes, rows = [], []
    for frame in decode_video(video, fps=LOOKS):
        faces = detector.detect(frame)
        boxes += [face.box for face in faces]
        rows += [] if net is None else [net.embed_faces(frame[None], [faces])[0]]
    return _Faces(np.array(boxes), None if net is None else np.array(rows))


def _boxes(faces: _Faces) -> np.ndarray:
    if faces.boxes is None:
        raise UnscorableError("no weights: models.face_detector")
    return faces.boxes


def _identity(faces: _Faces) -> dict[str, Any]:
    _boxes(faces)
    if faces.embeddings is None:
        raise UnscorableError("no weights: models.face_identity")
    return asdict(identity_drift(faces.embeddings, fps=LOOKS))
