"""The sync judge's training: its loss in closed form, that it learns, resumes, and writes what the pipeline loads."""

import json
import math

import numpy as np
import pytest
import torch

from miniature.train.syncnet import (
    SYNC_C_TARGET,
    WIDTHS,
    batch,
    detected,
    measure,
    set_scale,
    shift_audio,
    store_clip,
    sync_loss,
    train,
)
from miniature.world.clips import draw_clip
from perception.sync.syncnet import SyncNet, load_syncnet


def test_loss_of_knowing_nothing() -> None:
    nothing = torch.zeros(3, 10, 8)
    # Ten sounds and the padding to choose from, ten lips, and 3 x 2 sparse windows both ways at half weight.
    assert sync_loss(nothing, nothing).item() == pytest.approx(math.log(11) + math.log(10) + math.log(6), rel=1e-5)


def test_loss_of_knowing_everything_and_of_being_late() -> None:
    known = 40 * torch.eye(40).view(2, 20, 40)  # every moment of both clips is like no other
    assert sync_loss(known, known).item() < 1e-3
    assert sync_loss(known, known.roll(1, dims=1)).item() > 50


def test_training_learns_to_tell_moments_apart() -> None:
    torch.manual_seed(0)
    net = SyncNet(WIDTHS)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    store = [store_clip(seed, 1.6) for seed in (2, 3)]
    crops, windows = batch(store, np.random.default_rng(0), reconstructed=False)
    losses = []
    for _ in range(25):
        loss = sync_loss(net.embed_lips(crops), net.embed_audio(windows.flatten(0, 1)).unflatten(0, windows.shape[:2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_batch_holds_crops_and_the_sound_of_their_own_time() -> None:
    store = [store_clip(seed, 1.6) for seed in (6, 7, 8)]
    crops, windows = batch(store, np.random.default_rng(0), reconstructed=True)
    assert crops.shape == (3, 3, 34, 64, 64)
    assert windows.shape == (3, 30, 1, 13, 20)
    assert crops.min() >= 0
    assert 60 < crops.max() <= 255
    cepstra = store[0].cepstra[1:]  # the log energy is disturbed on purpose
    starts = [s for s in range(6) if np.allclose(windows[0, 0, 0, 1:], cepstra[:, 4 * s : 4 * s + 20])]
    assert len(starts) == 1


def test_detected_boxes_stay_on_the_face() -> None:
    boxes = np.tile([20.0, 10, 56, 54], (30, 1))
    jittered = detected(boxes, np.random.default_rng(0))
    assert jittered.shape == boxes.shape
    assert 0 < np.abs(jittered - boxes).max() < 12
    assert jittered.std(axis=0).max() < 3


def test_sound_is_shifted_by_whole_frames() -> None:
    clip = draw_clip(1, 1.0)
    assert np.array_equal(shift_audio(clip, 3)[:640], clip.audio[1920:2560])
    assert np.array_equal(shift_audio(clip, -3)[1920:2560], clip.audio[:640])
    assert not shift_audio(clip, -3)[:1920].any()
    assert np.array_equal(shift_audio(clip, 0), clip.audio)


def test_scale_sets_the_unit_and_nothing_else() -> None:
    torch.manual_seed(1)
    net = SyncNet(WIDTHS).eval().requires_grad_(False)
    before = measure(net, 3, first_seed=0)
    factor = set_scale(net, 3)
    after = measure(net, 3, first_seed=0)
    assert after["sync_c"] == pytest.approx(SYNC_C_TARGET, rel=1e-2)
    assert after["sync_c_other"] == pytest.approx(factor * before["sync_c_other"], rel=2e-2)


def test_short_training_is_resumed_and_loads(tmp_path) -> None:
    out = tmp_path / "syncnet" / "syncnet_v2.model"
    figures = train(out, minutes=0.01, clips=8, judged=1)
    assert set(figures) == {"scale", "exact", "sync_c", "sync_c_other"}
    first = torch.load(out.with_name(out.name + ".ckpt"), weights_only=True)
    train(out, minutes=2 * first["seconds"] / 60, clips=8, judged=1)
    second = torch.load(out.with_name(out.name + ".ckpt"), weights_only=True)
    assert second["step"] > first["step"]
    assert second["seconds"] > first["seconds"]
    assert load_syncnet(out).crop_size == 64
    rows = [json.loads(line) for line in out.with_name(out.name + ".jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("final")] == [first["step"], second["step"]]
