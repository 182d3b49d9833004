"""Light-ASD: the published layout, errors that say what is wrong, and a network made by hand whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
import torch

from perception.sync.active_speaker import ActiveSpeaker, ActiveSpeakerError, load_active_speaker, speaking_scores
from tests.changing_face import write_active_speaker


def _crops(frames: int, blinking: slice) -> np.ndarray:
    """Grey faces (T, 224, 224, 3) whose middle changes with every frame of a span and stays as it is elsewhere."""
    crops = np.full((frames, 224, 224, 3), 90, np.uint8)
    crops[blinking][::2, 60:160, 60:160] = 230
    return crops


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> ActiveSpeaker:
    return load_active_speaker(write_active_speaker(tmp_path_factory.mktemp("asd") / "made.model"))


def test_the_published_layout() -> None:
    """Facts of the published file: about 1.0 million parameters (README), 4,175,289 bytes."""
    with torch.device("meta"):
        state = ActiveSpeaker().state_dict()
    parameters = sum(t.numel() for name, t in state.items() if "running" not in name and "tracked" not in name)
    assert (len(state), parameters) == (192, 1_021_636)
    assert 4_100_000 < sum(t.numel() * t.element_size() for t in state.values()) < 4_175_289
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes["model.visualEncoder.block1.s_5.weight"] == (32, 1, 1, 5, 5)
    assert shapes["model.visualEncoder.block3.t_3.weight"] == (128, 128, 3, 1, 1)
    assert shapes["model.audioEncoder.block2.m_3.weight"] == (64, 32, 3, 1)
    assert shapes["model.audioEncoder.block1.t_5.weight"] == (32, 32, 1, 5)
    assert shapes["model.visualEncoder.block2.bn_last.running_var"] == (64,)
    assert shapes["model.GRU.gru_backward.weight_hh_l0"] == (384, 128)
    assert shapes["lossAV.FC.weight"] == shapes["lossV.FC.weight"] == (2, 128)


def test_every_frame_has_a_logit_whatever_the_length() -> None:
    torch.manual_seed(0)
    net = ActiveSpeaker().eval()
    for frames in (1, 2, 25, 26):
        logits = net(torch.rand(1, frames, 112, 112) * 255, torch.randn(1, 4 * frames, 13))
        assert logits.shape == (1, frames) and bool(logits.isfinite().all())


def test_a_face_speaks_where_it_changes(net: ActiveSpeaker) -> None:
    scores = speaking_scores(net, _crops(30, slice(4, 14)), np.zeros(30 * 640, np.float32))
    assert len(scores) == 29  # a whole last frame would need sound beyond it
    assert (scores[6:12] > 0).all() and (scores[:2] < 0).all() and (scores[17:] < 0).all()


def test_another_crop_size_is_refused(net: ActiveSpeaker) -> None:
    with pytest.raises(ActiveSpeakerError, match="expected \\(T, 224, 224, 3\\)"):
        speaking_scores(net, np.zeros((30, 112, 112, 3), np.uint8), np.zeros(30 * 640))


def test_a_parallel_training_s_names_are_read(net: ActiveSpeaker, tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "parallel.model")
    again = load_active_speaker(tmp_path / "parallel.model").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in net.state_dict().items())


def test_wrong_files_are_named(net: ActiveSpeaker, tmp_path: Path) -> None:
    state = net.state_dict()
    state["model.GRU.gru.weight_ih_l0"] = state.pop("model.GRU.gru_forward.weight_ih_l0")
    state["lossAV.FC.weight"] = torch.zeros(2, 64)
    state["lossV.FC.bias"] = torch.full((2,), torch.nan)
    torch.save(state, tmp_path / "wrong.model")
    with pytest.raises(ActiveSpeakerError) as error:
        load_active_speaker(tmp_path / "wrong.model")
    for words in (
        "gru_forward.weight_ih_l0 is missing",
        "gru.weight_ih_l0 is unexpected",
        "(2, 64) instead of (2, 128)",
    ):
        assert words in str(error.value)
    assert "lossV.FC.bias has values that are not finite" in str(error.value)
    (tmp_path / "page.model").write_text("<html>")
    with pytest.raises(ActiveSpeakerError, match="not a state dict"):
        load_active_speaker(tmp_path / "page.model")
    with pytest.raises(FileNotFoundError, match="finetuning_TalkSet"):
        load_active_speaker(tmp_path / "absent.model")
