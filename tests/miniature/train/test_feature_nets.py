"""The feature nets' trainer: how windows are played, that both nets learn and resume, and what the shipped ones see."""

import numpy as np
import pytest
import torch

from miniature.train.feature_nets import (
    PLAYS,
    Drawn,
    FrameNet,
    VideoNet,
    fit,
    frame_loss,
    frechet,
    measure_frames,
    measure_videos,
    played,
    train,
    video_loss,
)
from miniature.weights import model_paths
from perception.features.nets import frame_features, load_feature_net, video_features


@pytest.fixture(scope="module")
def drawn():
    return Drawn(8, first_seed=300, frames=35)


@pytest.mark.parametrize(
    ("play", "differences"),
    [("normal", {1}), ("reversed", {-1}), ("frozen", {0}), ("half", {0, 1}), ("double", {2})],
)
def test_windows_are_played_as_named(play, differences):
    order = played(play, 35, np.random.default_rng(0))
    assert len(order) == 16 and set(np.diff(order)) == differences and order.min() >= 0 and order.max() < 35


def test_a_shuffled_window_is_a_permutation():
    order = played("shuffled", 32, np.random.default_rng(0))
    assert sorted(order) == list(range(16)) and list(order) != sorted(order)


def test_drawn_truth_fits_the_frames(drawn):
    assert drawn.frames.shape == (8, 35, 64, 64, 3)
    assert drawn.attributes.shape == (8, 5) and drawn.mouth.shape == (8, 35, 3)
    np.testing.assert_allclose(drawn.phones.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize(("make", "loss_of", "answers"), [(FrameNet, frame_loss, 36), (VideoNet, video_loss, 57)])
def test_both_losses_fall(drawn, make, loss_of, answers):
    torch.manual_seed(0)
    net, rng = make(answers), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(18):
        loss = loss_of(net, drawn, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_training_writes_both_files_and_resumes(tmp_path):
    train(tmp_path, minutes=0.03, clips=4, held_out=6)
    frame = load_feature_net(tmp_path / "fid" / "inception.pt")
    assert frame_features(frame, np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 96)
    video = load_feature_net(tmp_path / "fvd" / "i3d_torchscript.pt")
    assert video_features(video, np.zeros((16, 64, 64, 3), np.uint8)).shape == (1, 64)
    checkpoint = tmp_path / "fid" / "inception.pt.ckpt"
    before = torch.load(checkpoint, weights_only=True)["step"]
    again = fit(FrameNet(36), frame_loss, Drawn(4, 0, 35), tmp_path / "fid" / "inception.pt", 0.05, 0)
    assert again.step > before > 0


def test_frechet_distance_closed_forms():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4))
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet(x, x + [3, 4, 0, 0]) == pytest.approx(25)
    assert frechet(x, 2 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(np.var(x, axis=0, ddof=1).sum())


def test_shipped_frame_net_tells_damage_from_other_people():
    path = model_paths()["fid_features"]
    figures = measure_frames(load_feature_net(path), clips=30)
    assert path.stat().st_size < 300_000
    assert 2 * figures["fid_coded"] < figures["fid_soft"] < figures["fid_blur"]
    assert 2 * figures["fid_coded"] < min(figures["fid_noise"], figures["fid_others"])


def test_shipped_video_net_tells_how_a_clip_is_played():
    path = model_paths()["fvd_features"]
    figures = measure_videos(load_feature_net(path), clips=30)
    assert path.stat().st_size < 300_000
    assert figures["fvd_normal"] == min(figures[f"fvd_{play}"] for play in PLAYS)
    assert figures["fvd_frozen"] > 2 * figures["fvd_normal"] and figures["fvd_blur"] > 2 * figures["fvd_normal"]
