"""Feature networks behind one call: frames in, one row of numbers per frame or window out.

Each is read from a local path and carries what a result is stamped with: its name, the version of what is done around
the network, and the hash of its weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.runs import hash_path
from perception.config import Protocol
from perception.features.nets import frame_features, load_feature_net, video_features
from perception.pose import POINTS, PoseEstimator, load_pose_estimator


@dataclass(frozen=True)
class FeatureExtractor:
    """Call it with one clip, RGB uint8 (T, H, W, 3), for float32 rows (n, d). `weights` is the SHA-256 of the file or
    folder; `version` changes whenever the same file would give other rows."""

    name: str
    version: str
    weights: str
    run: Callable[[np.ndarray], np.ndarray]

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        return self.run(frames)

    @property
    def stamp(self) -> dict[str, str]:
        """Where a row comes from."""
        return {"extractor": self.name, "version": self.version, "weights": self.weights}


def frame_extractor(path: Path | str, protocol: Protocol = "paper") -> FeatureExtractor:
    """FID: a row of 2048 per frame. FeatureError as `load_feature_net`."""
    net = load_feature_net(path)
    return FeatureExtractor(
        f"inception/{protocol}", "1", hash_path(path), lambda frames: frame_features(net, frames, protocol)
    )


def clip_extractor(path: Path | str, protocol: Protocol = "paper", stride: int = 1) -> FeatureExtractor:
    """FVD: a row of 400 per window of 16 frames, `stride` frames apart. FeatureError as `load_feature_net`."""
    net = load_feature_net(path)
    name = f"i3d/{protocol}/stride {stride}"
    return FeatureExtractor(name, "1", hash_path(path), lambda frames: video_features(net, frames, protocol, stride))


def pose_extractor(folder: Path | str) -> FeatureExtractor:
    """Hands and body: a row of 133 x (x px, y px, score) per frame, of its surest person; NaN where nobody is seen.

    OnnxError as `load_pose_estimator`.
    """
    estimator = load_pose_estimator(folder)
    return FeatureExtractor("dwpose", "1", hash_path(folder), lambda frames: _pose_rows(estimator, frames))


def _pose_rows(estimator: PoseEstimator, frames: np.ndarray) -> np.ndarray:
    rows = np.full((len(frames), POINTS, 3), np.nan, np.float32)
    for number, frame in enumerate(frames):
        for pose in estimator.estimate(frame)[:1]:
            rows[number, :, :2], rows[number, :, 2] = pose.points, pose.scores
    return rows.reshape(len(frames), -1)
