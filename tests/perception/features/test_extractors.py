"""Every extractor gives rows for frames and says where they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.runs import sha256_file
from miniature.train.feature_nets import FrameNet, VideoNet, write_torchscript
from perception.features.extractors import clip_extractor, frame_extractor, pose_extractor
from perception.features.nets import frame_features, load_feature_net, video_features
from perception.pose import DETECTOR_FILE, POSE_FILE
from tests.perception.small_networks import write_constant


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nets")
    write_torchscript(FrameNet(4), folder / "inception.pt")
    write_torchscript(VideoNet(4), folder / "i3d_torchscript.pt")
    return folder


def frames(count: int, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def test_frames_and_windows_become_rows(nets: Path) -> None:
    clip = frames(40)
    for_fid, for_fvd = frame_extractor(nets / "inception.pt"), clip_extractor(nets / "i3d_torchscript.pt", "strict")
    np.testing.assert_array_equal(for_fid(clip), frame_features(load_feature_net(nets / "inception.pt"), clip))
    expected = video_features(load_feature_net(nets / "i3d_torchscript.pt"), clip, "strict")
    np.testing.assert_array_equal(for_fvd(clip), expected)
    assert for_fid(clip).shape == (40, 96) and expected.shape == (2, 64)


def test_a_stamp_tells_protocols_and_weights_apart(nets: Path) -> None:
    path = nets / "inception.pt"
    paper, strict = frame_extractor(path), frame_extractor(path, "strict")
    assert paper.stamp == {"extractor": "inception/paper", "version": "1", "weights": sha256_file(path)}
    assert strict.stamp != paper.stamp
    video = nets / "i3d_torchscript.pt"
    assert clip_extractor(video, stride=4).stamp != clip_extractor(video).stamp


def test_pose_rows_are_points_and_scores_of_the_surest_person(tmp_path: Path) -> None:
    rows = np.zeros((1, 84, 6), np.float32)
    rows[0, 36] = (0, 0, np.log(4), np.log(4), 0.9, 1)
    write_constant(tmp_path / DETECTOR_FILE, [1, 3, 64, 64], {"output": rows})
    curves = {name: np.zeros((1, 133, bins)) for name, bins in (("simcc_x", 72), ("simcc_y", 96))}
    curves["simcc_x"][0, :, 36] = curves["simcc_y"][0, :, 48] = 0.75
    write_constant(tmp_path / POSE_FILE, [1, 3, 48, 36], curves)
    found = pose_extractor(tmp_path)(frames(2)).reshape(2, 133, 3)
    assert found == pytest.approx(np.tile(np.array([32, 32, 0.75], np.float32), (2, 133, 1)), abs=1e-3)
    write_constant(tmp_path / DETECTOR_FILE, [1, 3, 64, 64], {"output": 0 * rows})
    assert np.isnan(pose_extractor(tmp_path)(frames(1))).all()
