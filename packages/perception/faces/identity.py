"""Face identity: ArcFace embeddings (Deng et al. 2019) of faces aligned by their five keypoints.

Reads `w600k_r50.onnx` (InsightFace buffalo_l) or `glintr100.onnx` (antelopev2): RGB 112 x 112 scaled to -1..1 in, 512
numbers out. Cosines of embeddings are the identity similarity CSIM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from perception.faces.align import SIDE, align_face
from perception.faces.detect import Face, FaceDetector
from perception.onnx_nets import open_network

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


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
