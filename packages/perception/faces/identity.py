"""Face identity: ArcFace embeddings (Deng et al. 2019) of faces aligned by their five keypoints.

Reads `w600k_r50.onnx` (InsightFace buffalo_l) or `glintr100.onnx` (antelopev2): RGB 112 x 112 scaled to -1..1 in, 512
numbers out. Cosines of embeddings are the identity similarity CSIM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from perception.faces.detect import Face, FaceDetector
from perception.onnx_nets import open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

SIDE = 112
# Where the eyes (left as seen first), the nose and the mouth corners lie in an aligned face of 112 px.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)], np.float64
)


def align_face(frame: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Turn, scale and shift an image (H, W, 3) so that `keypoints` (5, 2) px come to lie on TEMPLATE -> (112, 112, 3).

    Black outside the image.
    """
    return cv2.warpAffine(frame, similarity(keypoints, TEMPLATE), (SIDE, SIDE))


def similarity(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation, scale and shift (2, 3), without mirroring, that brings `points` (n, 2) closest to `target` (n, 2).

    Least squares (Umeyama 1991): as complex numbers, target = a * points + b is an ordinary line fit.
    """
    z, w = (pair[:, 0] + 1j * pair[:, 1] for pair in (np.asarray(points, np.float64), np.asarray(target, np.float64)))
    apart = z - z.mean()
    a = np.vdot(apart, w - w.mean()) / np.vdot(apart, apart)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


class FaceIdentity:
    """The embedding network."""

    def __init__(self, session: "InferenceSession") -> None:
        self._session = session
        self._input = session.get_inputs()[0].name
        self.width = int(session.get_outputs()[0].shape[1])

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Aligned RGB faces (n, 112, 112, 3) uint8 -> (n, width) float32 rows of length one."""
        pixels = (np.asarray(faces, np.float32).transpose(0, 3, 1, 2) - 127.5) / 127.5
        # One by one: published files declare a batch of one.
        rows = [self._session.run(None, {self._input: face[None]})[0][0] for face in np.ascontiguousarray(pixels)]
        embeddings = np.stack(rows) if rows else np.empty((0, self.width), np.float32)
        return embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)

    def embed_frames(self, frames: np.ndarray, detector: FaceDetector) -> np.ndarray:
        """The largest face of each RGB frame (n, H, W, 3) uint8 -> (n, width) float32; NaN where no face is seen."""
        return self.embed_faces(frames, [detector.detect(frame) for frame in frames])

    def embed_faces(self, frames: np.ndarray, found: Sequence[Sequence[Face]]) -> np.ndarray:
        """As `embed_frames`, the faces of each frame having been found already."""
        rows = np.full((len(frames), self.width), np.nan, np.float32)
        for number, (frame, faces) in enumerate(zip(frames, found, strict=True)):
            face = largest_face(faces)
            if face is not None and face.keypoints is not None:
                rows[number] = self.embed(align_face(frame, face.keypoints)[None])[0]
        return rows


def largest_face(faces: Sequence[Face]) -> Face | None:
    """The face whose box has the largest area, None of none."""
    return max(faces, key=lambda face: float(np.prod(face.box[2:] - face.box[:2])), default=None)


def load_face_identity(path: Path | str) -> FaceIdentity:
    """Read an ArcFace network. OnnxError when the file is absent, unreadable or has other inputs and outputs."""
    session = open_network(
        Path(path), "w600k_r50.onnx or glintr100.onnx", inputs=[(None, 3, SIDE, SIDE)], outputs=[(None, 512)]
    )
    return FaceIdentity(session)
