"""Metrics of one clip from arrays whose answer is known, and the reason for every value that is missing."""

from typing import Any

import numpy as np
import pytest

from eval.features.extractors import EXTRACTORS
from eval.features.records import NO_WEIGHTS, NOT_NAMED, ClipFeatures, Features, Record
from eval.metrics.clip_metrics import CLIP_METRICS, METRICS, clip_records
from miniature.world.clips import draw_clip
from miniature.world.planted import FAULTS, Truth
from perception.faces.crop import crop_track
from perception.sync.lips import SIDE, mouth_changes

ROW = {"method": "adapter", "clip_id": "c", "seed": None}
QUALITY = {"iqa": np.float64(4.5), "ase": np.float64(3.5), "frames": np.int64(3)}
FACE, OTHER = np.array([1.0, 0.0]), np.array([0.0, 1.0])


def seen(failure: str = "", **arrays: dict[str, Any]) -> Features:
    return Features({name: {"status": np.array("ok"), **found} for name, found in arrays.items()}, failure)


def measured(look: ClipFeatures, ready: set[str] | None = None) -> dict[str, Record]:
    every = {extractor.name for extractor in EXTRACTORS}
    return {r.metric: r for r in clip_records(ROW, look, every if ready is None else ready, "paper")}


def test_a_value_comes_with_what_it_rests_on() -> None:
    records = {r.metric: r for r in clip_records(ROW, ClipFeatures(seen(quality=QUALITY)), {"quality"}, "strict")}
    assert records["iqa"] == Record("adapter", "c", "iqa", 4.5, "ok", 3, "strict", 0)
    assert records["sync_c"] == Record("adapter", "c", "sync_c", None, NO_WEIGHTS, 0, "strict", 0)
    assert set(records) == set(CLIP_METRICS)


def test_no_face_no_weights_no_audio_and_no_file_have_different_reasons() -> None:
    faceless = Features({"sync": {"status": np.array("no face: seen in 2 frames")}})
    found = measured(ClipFeatures(faceless), {"sync", "sound", "lips"})
    assert found["sync_d"].status == found["sync_c_speech"].status == "no face: seen in 2 frames"
    assert found["hkc"].status == NO_WEIGHTS and found["silent_lips"].status == NOT_NAMED
    assert {r.status for r in measured(ClipFeatures(seen("not a video"))).values()} == {"failed: not a video"}


def test_likeness_is_to_the_input_image_if_any_else_to_the_first_real_face() -> None:
    own = seen(identity={"embeddings": np.stack([FACE, FACE, OTHER]), "fps": np.float64(25)})
    real = seen(identity={"embeddings": np.stack([np.full(2, np.nan), OTHER, FACE])})
    plain, pictured = ClipFeatures(own, real), ClipFeatures(own, real, seen(identity={"embeddings": FACE[None]}))
    assert measured(plain)["csim"].value == pytest.approx(1 / 3)
    assert measured(pictured)["csim"].value == pytest.approx(2 / 3)
    assert measured(plain)["csim_truth"].value == pytest.approx(0.0) and measured(plain)["csim_truth"].n == 2
    assert measured(plain)["face_coverage"].value == 1.0
    assert measured(ClipFeatures(own))["csim"].status == NOT_NAMED
    assert measured(ClipFeatures(own, seen("real.mp4 is broken")))["csim"].status == "failed: real.mp4 is broken"


def test_an_avatar_is_measured_by_its_views_and_its_particles() -> None:
    own = seen(
        identity={"embeddings": np.stack([FACE, FACE]), "fps": np.float64(25)},
        particles={
            "arap": 0.2,
            "jerk": 0.5,
            "jerk_power": np.array([1.0, 3.0]),
            "frequency": np.array([1, 11]),
            "frames": 9,
        },
        trajectories={"error": 0.3, "share": 0.1, "frames": 8},
    )
    found = measured(ClipFeatures(own, turned=seen(identity={"embeddings": np.stack([FACE, OTHER])})))
    names = ("csim_views", "arap", "jerk", "jerk_fast", "trajectory", "trajectory_share")
    assert [found[name].value for name in names] == [0.5, 0.2, 0.5, 0.75, 0.3, 0.1]
    assert [found[name].n for name in names] == [2, 9, 9, 9, 8, 8]
    alone = measured(ClipFeatures(seen(identity={"embeddings": FACE[None], "fps": np.float64(25)})))
    assert "no video from a camera that turns" in alone["csim_views"].status and alone["arap"].status == NOT_NAMED


def test_speech_masks_the_windows_of_sync_and_the_changes_of_the_lips() -> None:
    # Twenty frames of speech, then silence; lips and sound agree while somebody speaks only.
    by_window = np.full((40, 5), 10.0)
    by_window[:18, 2] = 4.0
    speech = np.arange(45) < 20
    scalars = dict.fromkeys(("sync_c", "sync_d", "sync_c_valid", "sync_offset", "offset_zero"), 1.0)
    changes = np.where(np.arange(40) < 20 - 1, 0.8, 0.1)
    look = ClipFeatures(
        seen(
            sync={"by_window": by_window, "window_start": np.int64(2), "windows": 40, **scalars},
            sound={"speech": speech, "quiet": ~speech, "onsets": np.zeros(0)},
            lips={"changes": changes, "start": np.int64(0)},
        )
    )
    found = measured(look)
    assert (found["sync_c_speech"].value, found["sync_c_speech"].n) == (6.0, 18)
    assert (found["lip_dynamics"].value, found["silent_lips"].value, found["silent_lips"].n) == (0.8, 0.1, 20)
    talking, still = (
        Features({**look.own.arrays, "sound": {"status": np.array("ok"), "speech": spoken, "quiet": ~spoken}})
        for spoken in (np.ones(60, bool), np.zeros(60, bool))
    )
    assert measured(ClipFeatures(talking))["silent_lips"].status.startswith("no silence")
    assert {measured(ClipFeatures(still))[name].status[:9] for name in ("sync_c_speech", "lip_dynamics")} == {
        "no speech"
    }


def test_drawn_lips_that_move_in_silence_score_above_closed_ones() -> None:
    """The sound is silent throughout: lips that speak on are restless, closed ones are not."""
    clip = draw_clip(41, 2.0)
    closed = FAULTS["off_screen"](Truth("off_screen", 41, seconds=2.0)).frames
    sound = {"speech": np.zeros(50, bool), "quiet": np.ones(50, bool)}
    values = []
    for frames in (clip.frames, closed):
        changes = mouth_changes(crop_track(frames, clip.boxes, SIDE))
        found = measured(
            ClipFeatures(seen(lips={"changes": changes, "start": np.int64(0)}, sound=sound)), {"lips", "sound"}
        )
        values.append(found["silent_lips"].value)
    assert values[0] > 0.5 > 0.3 > values[1]


def test_joins_and_drift_of_a_long_video() -> None:
    rng = np.random.default_rng(0)
    jumps = rng.gamma(16, 0.25, 249)
    jumps[99] += 10
    colours = np.zeros((10, 5))
    colours[:, 0] = 50 + np.arange(10) / 10  # 6 per minute
    behind = np.tile(colours[:1], (10, 1)) + np.arange(10)[:, None] * [0, 0, 0.2, 0, 0]  # 12 per minute
    look = ClipFeatures(seen(course={"jumps": jumps, "colours": colours}, background={"colours": behind}), seams=(100,))
    found = measured(look)
    assert found["seam_z"].value > 3 and found["seam_p"].value <= 0.02 and found["seam_z"].n == 1
    assert found["colour_drift"].value == pytest.approx(6) and found["saturation_drift"].value == 0
    assert found["background_drift"].value == pytest.approx(12) and found["background_drift"].n == 10
    assert found["background_shift"].value > 1.0 > found["colour_shift"].value
    assert measured(ClipFeatures(look.own))["seam_z"].status == "no seam: the video is one chunk"
    short = ClipFeatures(seen(course={"jumps": jumps[:49], "colours": colours[:2]}))
    assert measured(short)["colour_drift"].status == "too short: 2 s measured where drift needs 3"


def test_hands_body_and_beats_come_from_the_same_poses() -> None:
    t = np.arange(100) / 25
    poses = np.zeros((100, 133, 3))
    poses[..., 1], poses[..., 2] = 50, 0.8
    poses[:, 5], poses[:, 6] = (-50, 0, 0.8), (50, 0, 0.8)
    poses[:, 9:11, 0] += 100 * np.sin(2 * np.pi * t)[:, None]  # turns at the quarters and three quarters of a second
    sound = {"speech": np.ones(100, bool), "onsets": np.arange(0.25, 4, 0.5)}
    found = measured(ClipFeatures(seen(pose={"poses": poses}, sound=sound), seen(pose={"poses": poses})))
    assert found["hkc"].value == found["hkc_all"].value == pytest.approx(0.8) and found["hand_presence"].value == 1.0
    assert found["wrist_path"].value == pytest.approx(4.0, rel=0.02)
    assert found["bas"].value > 0.9 and found["bas_excess"].value > 0.3
    alone = measured(ClipFeatures(seen(pose={"poses": poses})))
    assert alone["hkc_all"].value is None and alone["bas"].status == NOT_NAMED


def test_every_metric_reads_an_extractor_that_there_is() -> None:
    assert {metric.extractor for metric in METRICS.values()} <= {extractor.name for extractor in EXTRACTORS}
    assert all(metric.of for metric in CLIP_METRICS.values())
