"""Planted audio offsets are recovered; without a face there is no score."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from eval.config import SyncRules
from eval.features.records import UnscorableError
from eval.features.sync import SyncJudge
from eval.metrics.lips import confidence_of
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip
from perception.faces.detect import Face
from perception.speech.detect import speech_at
from perception.sync.syncnet import SyncNet, SyncNetWidths, load_syncnet

SPARE = 12  # frames drawn on either side, so that shifted sound is real sound


class DrawnFaces:
    """Knows where the faces of a drawn clip are, frame after frame; `seen` says in which frames it looks."""

    def __init__(self, boxes: np.ndarray, seen: np.ndarray | None = None) -> None:
        self.left: Iterator[np.ndarray] = iter(boxes)
        self.seen = iter(np.ones(len(boxes), bool) if seen is None else seen)

    def detect(self, frame: np.ndarray) -> list[Face]:
        box = next(self.left)
        return [Face(box, 1.0, None)] if next(self.seen) else []


@pytest.fixture(scope="module")
def net() -> SyncNet:
    return load_syncnet(model_paths()["sync_scorer"])


@pytest.fixture(scope="module")
def clips() -> list[DrawnClip]:
    return [draw_clip(HELD_OUT_SEED + seed, 4.0) for seed in (21, 22, 23)]


def scores(net: SyncNet, clip: DrawnClip, shift: int, sound: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Score the middle of a clip with the sound of `shift` frames later: the sound then leads by `shift`."""
    stop = len(clip.frames) - SPARE
    wave = (clip.audio if sound is None else sound)[(SPARE + shift) * 640 : (stop + shift) * 640]
    judge = SyncJudge(DrawnFaces(clip.boxes[SPARE:stop]), net, SyncRules())
    return judge.score(clip.frames[SPARE:stop], wave)


def test_planted_offsets_are_found(net: SyncNet, clips: list[DrawnClip]) -> None:
    shifts = (-10, -4, -1, 0, 1, 4, 10)
    found = [int(scores(net, clip, shift)["sync_offset"]) for clip in clips for shift in shifts]
    assert found == list(shifts) * len(clips)


def test_the_right_audio_scores_above_another_clips(net: SyncNet, clips: list[DrawnClip]) -> None:
    for clip, other in zip(clips, clips[1:] + clips[:1], strict=True):
        right, wrong = scores(net, clip, 0), scores(net, clip, 0, other.audio)
        assert right["sync_c"] > wrong["sync_c"] + 1 and right["sync_d"] < wrong["sync_d"]
        assert right["offset_zero"] == 1.0 and right["sync_c_valid"] > wrong["sync_c_valid"]


def test_the_curve_is_the_distance_per_frame_and_lowest_where_lips_and_audio_agree(
    net: SyncNet, clips: list[DrawnClip]
) -> None:
    clip = clips[0]
    half = len(clip.audio) // 2
    spoilt = np.concatenate([clip.audio[:half], clips[1].audio[half:]])
    result = scores(net, clip, 0, spoilt)
    count = len(clip.frames) - 2 * SPARE
    assert len(result["curve"]) == count - 5 - 8 and int(result["curve_start"]) == 6
    good, bad = result["curve"][:25], result["curve"][-25:]
    assert good.mean() < bad.mean() - 1


def test_the_confidence_of_all_windows_is_that_of_the_valid_ones(net: SyncNet, clips: list[DrawnClip]) -> None:
    found = scores(net, clips[0], 0)
    every = np.ones(len(found["by_window"]), bool)
    assert confidence_of(found["by_window"], every) == pytest.approx(float(found["sync_c_valid"]))
    assert int(found["window_start"]) == 2
    with pytest.raises(UnscorableError, match="nobody speaks"):
        confidence_of(found["by_window"], ~every)


def test_silence_drags_the_score_of_all_windows_down_and_not_that_of_speech(
    net: SyncNet, clips: list[DrawnClip]
) -> None:
    clip = clips[0]
    half = len(clip.audio) // 2
    muted = np.concatenate([clip.audio[:half], np.zeros(len(clip.audio) - half, np.float32)])
    found = scores(net, clip, 0, muted)
    spoken = speech_at(muted[SPARE * 640 :], (np.arange(len(found["by_window"])) + 2.5) / 25)
    assert confidence_of(found["by_window"], spoken) > float(found["sync_c_valid"]) + 1


def test_a_face_that_is_hardly_seen_has_no_score() -> None:
    torch.manual_seed(0)
    net = SyncNet(SyncNetWidths((4,) * 6, (4,) * 6, 8, 64)).eval()
    frames, boxes = np.zeros((30, 64, 64, 3), np.uint8), np.tile(np.float32([8, 8, 56, 56]), (30, 1))
    seen = np.arange(30) % 2 == 0
    wave = np.zeros(30 * 640, np.float32)
    with pytest.raises(UnscorableError, match="seen in 15 frames where 25 are needed"):
        SyncJudge(DrawnFaces(boxes, seen), net).score(frames, wave)
    gaps = SyncJudge(DrawnFaces(boxes, seen), net, SyncRules(min_track=15)).score(frames, wave)
    assert int(gaps["windows"]) == 29 - 5  # from the first sight to the last, gaps filled in


def test_detection_in_one_frame_of_five_gives_nearly_the_same(net: SyncNet, clips: list[DrawnClip]) -> None:
    clip = clips[1]
    every = SyncJudge(DrawnFaces(clip.boxes), net).score(clip.frames, clip.audio)
    fifth = SyncJudge(DrawnFaces(clip.boxes[::5]), net, SyncRules(look_every=5)).score(clip.frames, clip.audio)
    assert int(fifth["sync_offset"]) == int(every["sync_offset"]) == 0
    assert float(fifth["sync_c"]) == pytest.approx(float(every["sync_c"]), rel=0.1)
    # The last look is at frame 95 of 100, so the track ends four frames earlier.
    assert int(every["windows"]) - int(fifth["windows"]) == 4


def test_a_track_that_begins_late_is_scored_against_its_own_audio(net: SyncNet, clips: list[DrawnClip]) -> None:
    clip = clips[0]
    seen = np.arange(len(clip.frames)) >= 20
    result = SyncJudge(DrawnFaces(clip.boxes, seen), net).score(clip.frames, clip.audio)
    assert int(result["sync_offset"]) == 0 and int(result["curve_start"]) == 26
