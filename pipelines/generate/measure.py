"""Drift of a finished video, for the description beside it: colours, likeness, and jumps where chunks were joined."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from common.constants import FPS
from common.media.video import decode_video
from eval.features.records import UnscorableError
from eval.metrics.drift import background_mask, colour_curves, colour_of, identity_drift, judge_colours
from eval.metrics.seam import frame_jumps, seam_jumps
from perception.faces.detect import load_face_detector
from perception.faces.identity import load_face_identity

RECOGNISERS = ("w600k_r50.onnx", "glintr100.onnx", "rec_*.onnx")
SAMPLED_FPS = 5.0  # frames a second in which colours are measured and a face is looked for


@dataclass(frozen=True)
class _Faces:
    """Boxes (n, 4) of all faces in the sampled frames and embeddings (samples, E) of the largest in each, NaN where
    none is seen; None where the network is lacking."""

    boxes: np.ndarray | None
    embeddings: np.ndarray | None


def measure_drift(
    video: Path, image: np.ndarray, starts: Sequence[int], models: Mapping[str, Path | None]
) -> dict[str, Any]:
    """Drift of colours from the `image` (H, W, 3) it began with, of whole frames as `colour` and of what no person
    covers as `background`; jumps at the first frames `starts` of its chunks as `seam`; drift of likeness as `identity`.

    The background needs a face_detector in `models`, the likeness also a recogniser. Each is the fields of its metric,
    or {"status": why there is none}. The video is decoded once. Raises MediaError for a file that cannot be read.
    """
    # The background is known after the last frame only, and a long video does not fit into memory: five frames of each
    # second wait on the disk.
    with TemporaryFile(dir=video.parent) as spool:
        jumps = frame_jumps(_spool_samples(decode_video(video), spool))
        samples = np.memmap(spool, np.uint8, "r").reshape(-1, *image.shape)
        faces = _find_faces(samples, models)
        masks: list[np.ndarray | None] = [None]
        background: dict[str, Any] = {}
        try:
            masks.append(background_mask(_boxes(faces), *image.shape[:2]))
        except UnscorableError as error:
            background = {"status": str(error)}
        whole, *behind = colour_curves(samples, masks, SAMPLED_FPS)
    if behind:
        background = _scored(lambda: asdict(judge_colours(behind[0], colour_of(image, masks[1]))))
    return {
        "colour": _scored(lambda: asdict(judge_colours(whole, colour_of(image)))),
        "background": background,
        "seam": _scored(lambda: asdict(seam_jumps(jumps, starts[1:]))),
        "identity": _scored(lambda: _identity(faces)),
    }


def _spool_samples(frames: Iterator[np.ndarray], spool: IO[bytes]) -> Iterator[np.ndarray]:
    """The frames themselves; those that are sampled are written to `spool` as they pass."""
    for number, frame in enumerate(frames):
        if number % round(FPS / SAMPLED_FPS) == 0:
            spool.write(frame.tobytes())
        yield frame
    spool.flush()


def _scored(metric: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return metric()
    except UnscorableError as error:
        return {"status": str(error)}


def _find_faces(samples: np.ndarray, models: Mapping[str, Path | None]) -> _Faces:
    pack = models.get("face_detector")
    if pack is None:
        return _Faces(None, None)
    own = models.get("face_identity")
    recognisers = [own] if own else [file for name in RECOGNISERS for file in sorted(pack.glob(name))]
    detector, net = load_face_detector(pack), load_face_identity(recognisers[0]) if recognisers else None
    boxes, rows = [], []
    for frame in samples:
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
    return asdict(identity_drift(faces.embeddings, fps=SAMPLED_FPS))
