"""Who speaks: each judge alone, what outranks what, and the stages that ask them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Weights
from common.ledger.store import Ledger
from curation.config import PeopleConfig, SpeakerConfig
from curation.stages.cut import cut_row
from curation.stages.shots import Piece
from curation.stages.speaker import (
    ActiveSpeakerStage,
    Evidence,
    LipsStage,
    choose_speaker,
    face_crops,
    speaker_fields,
)
from curation.stages.tracks import find_tracks
from miniature.world.clips import draw_clip
from miniature.world.planted import FAULTS, Truth
from tests.changing_face import write_active_speaker
from tests.curation.conftest import Talk, clip_row, with_tracks, write_talk

CONFIG = SpeakerConfig()
STILL, MOVING = (0.1, 0.9), (0.8, 0.3)


@pytest.mark.parametrize(
    ("evidence", "chosen"),
    [
        (Evidence(speaking_pct=[5, 80], sync_c=[9, 1], lips=[MOVING, STILL], distance=[0, 1]), (1, "active_speaker")),
        (Evidence(speaking_pct=[5, 20], sync_c=[2, 6], lips=[MOVING, STILL], distance=[0, 1]), (1, "sync")),
        (Evidence(sync_c=[2.9, 1], lips=[STILL, MOVING], distance=[0, 1]), (1, "lips")),
        (Evidence(lips=[(0.7, 0.1), (0.5, 0.6), (0.3, 0.9)]), (1, "lips")),
        (Evidence(sync_c=[2.9, 1], lips=[STILL, STILL], distance=[0.4, 0.1]), (1, "annotation")),
        (Evidence(sync_c=[1, 2.9], lips=[STILL, STILL]), (1, "none")),
        (Evidence(), (0, "none")),
    ],
)
def test_the_first_judge_that_sees_a_face_speak_decides(evidence: Evidence, chosen: tuple[int, str]) -> None:
    assert choose_speaker(CONFIG, evidence) == chosen


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[bool], dict]:
    """Cuts a clip of somebody who listens with closed lips, on the left, beside somebody who speaks; or of both
    listening."""

    def make(anybody: bool) -> dict:
        speaker = draw_clip(7, 3.0)
        listeners = [FAULTS["off_screen"](Truth("off_screen", seed, seconds=3.0)).frames for seed in (8, 7)]
        views = [listeners[0], speaker.frames if anybody else listeners[1]]
        talk = Talk(np.concatenate(views, axis=2), speaker.audio, speaker.mouth[:, 0])
        row = clip_row(write_talk(tmp_path / "pair.mp4", talk), talk) | {"height": 64}
        boxes = [[14.0, 8.0, 50.0, 52.0], [78.0, 8.0, 114.0, 52.0]]
        row["faces"] = [(time, boxes) for time, _ in row["faces"]]
        cut_row(tmp_path / "clips", row)
        return row

    return make


def test_lips_alone_tell_speaker_from_listener(pair: Callable[[bool], dict], tmp_path: Path) -> None:
    stage = LipsStage(CONFIG, tmp_path / "clips", tmp_path)
    row = pair(True) | {"x": 0.75, "y": 0.47}
    (outcome,) = run_stage(stage, [with_tracks(tmp_path, row)], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    fields = outcome.outputs
    right = next(
        n for n, track in enumerate(find_tracks(PeopleConfig(), Piece(row, row["faces"]))) if track.boxes[0, 0] > 60
    )
    assert (fields["face_track_id"], fields["speaker_evidence"]) == (right, "lips")
    assert fields["lips"][right][0] == fields["lip_motion"] > 0.55 and fields["lips"][1 - right][0] < 0.4
    assert fields["xy_agreement"] < 0.03 and fields["n_faces_median"] == 2 and fields["asd_speaking_pct"] is None


def test_two_listeners(pair: Callable[[bool], dict], tmp_path: Path) -> None:
    stage = LipsStage(CONFIG, tmp_path / "clips", tmp_path)
    (outcome,) = run_stage(
        stage, [with_tracks(tmp_path, pair(False))], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1)
    )
    assert outcome.outputs["speaker_evidence"] == "none" and outcome.outputs["lip_motion"] < 0.4


def test_the_network_s_word_is_stored_for_every_face(tmp_path: Path) -> None:
    """Two squares: the left one flickers, the right one stays as it is."""
    frames = np.full((75, 64, 128, 3), 60, np.uint8)
    frames[:, 8:52, 78:114] = 180
    frames[::2, 8:52, 14:50], frames[1::2, 8:52, 14:50] = 220, 90
    talk = Talk(frames, draw_clip(7, 3.0).audio, np.zeros(75))
    row = clip_row(write_talk(tmp_path / "pair.mp4", talk), talk)
    row["faces"] = [(time, [[14, 8, 50, 52], [78, 8, 114, 52]]) for time, _ in row["faces"][:4]]
    row |= {"t_end": 0.8, "duration": 0.8}  # the network is large for one core
    cut_row(tmp_path / "clips", row)
    weights = Weights("active_speaker", write_active_speaker(tmp_path / "a.model"), "abc")
    stage = ActiveSpeakerStage(weights, tmp_path / "clips", tmp_path)
    (outcome,) = run_stage(stage, [with_tracks(tmp_path, row)], Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    tracks = find_tracks(PeopleConfig(), Piece(row, row["faces"]))
    left = next(number for number, track in enumerate(tracks) if track.boxes[0, 0] < 60)
    assert outcome.outputs["speaking_pct"][left] > 80 and outcome.outputs["speaking_pct"][1 - left] < 20
    fields = speaker_fields(CONFIG, tracks, row | outcome.outputs, sync_c=[5.0, 9.0])
    assert (fields["face_track_id"], fields["speaker_evidence"]) == (left, "active_speaker")
    assert fields["asd_speaking_pct"] == outcome.outputs["speaking_pct"][left]


def test_a_clip_without_a_face_and_one_without_sound(pair: Callable[[bool], dict], tmp_path: Path) -> None:
    row = pair(True)
    stage = LipsStage(CONFIG, tmp_path / "clips", tmp_path)
    mute = Talk(np.zeros((75, 64, 128, 3), np.uint8), None, np.zeros(75))  # type: ignore[arg-type]
    rows = [
        row | {"unit": "empty", "faces": []},
        row | {"unit": "mute", "path": str(write_talk(tmp_path / "mute.mp4", mute)), "source_sha256": "mute"},
    ]
    rows = [with_tracks(tmp_path, row) for row in rows]
    empty, silent = run_stage(stage, rows, Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1))
    assert (empty.state, empty.outputs) == ("kept", {}) and (silent.state, silent.reason) == ("rejected", "no_audio")


def test_a_face_is_taken_over_its_own_frames(pair: Callable[[bool], dict], tmp_path: Path) -> None:
    row = pair(True)
    track = find_tracks(PeopleConfig(), Piece(row, row["faces"]))[0]
    crops = face_crops(tmp_path / "clips" / "clip.mp4", track, 96)
    assert crops.shape == (len(track.boxes), 96, 96, 3)
