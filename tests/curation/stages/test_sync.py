"""Planted shifts between picture and sound are found, with the right sign, and put right in the clip file."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.constants import AUDIO_RATE
from common.executors.stage import Weights
from common.media.audio import read_audio
from common.media.video import cut_clip
from common.runs import sha256_file
from curation.config import SpeakerConfig, SyncConfig
from curation.stages.cut import cut_row
from curation.stages.sync import SyncStage, measure_drift
from perception.sync.syncnet import load_syncnet
from tests.curation.conftest import clip_row, draw_talk, with_tracks, write_talk

CONFIG = SyncConfig(min_correction_c=0.3)
SPEAKER = SpeakerConfig(min_sync_c=0.3)


@pytest.fixture
def score(tmp_path: Path, syncnet_file: Path) -> Callable[..., dict]:
    """Cuts and scores a row in the folder `clips`; returns the outputs."""
    net = load_syncnet(syncnet_file)

    def run(row: dict, config: SyncConfig = CONFIG) -> dict:
        if "sha256" not in row:
            row |= cut_row(tmp_path / "clips", row).outputs
        stage = SyncStage(config, SPEAKER, Weights("sync_scorer", syncnet_file, ""), tmp_path / "clips", tmp_path)
        stage.hold(net=net)
        return stage(with_tracks(tmp_path, row)).outputs

    return run


@pytest.mark.parametrize("late", [-10, -4, -1, 0, 1, 5, 10])
def test_a_planted_shift_is_measured_and_taken_back(late: int, score: Callable[..., dict], tmp_path: Path) -> None:
    """Sound that comes `late` frames late has offset -late; moved by that, it is what it was before the shift."""
    path = write_talk(tmp_path / "late.mp4", draw_talk(5, shift=late))
    outputs = score(clip_row(path, draw_talk(5)))
    assert outputs["sync_offset"] == -late
    assert outputs["sync_offset_applied"] == -late
    sound, right = read_audio(tmp_path / "clips" / "clip.mp4"), draw_talk(5).audio
    inside = slice(abs(late) * 640, len(right) - abs(late) * 640)
    assert np.corrcoef(sound[inside], right[inside])[0, 1] > 0.95


def test_the_corrected_clip_scores_like_one_in_sync(score: Callable[..., dict], tmp_path: Path) -> None:
    right = score(clip_row(write_talk(tmp_path / "right.mp4", draw_talk(5)), draw_talk(5), "right"))
    late = score(clip_row(write_talk(tmp_path / "late.mp4", draw_talk(5, shift=6)), draw_talk(5), "late"))
    assert late["sync_c"] == pytest.approx(right["sync_c"], rel=0.15)
    assert "sha256" in late and "sha256" not in right
    assert late["sha256"] == sha256_file(tmp_path / "clips" / "late.mp4")


def test_thirds_and_slope_are_the_source_s(score: Callable[..., dict], tmp_path: Path) -> None:
    """Measured again after the correction, and told as they were before it."""
    talk = draw_talk(5, 7.0, shift=6)
    late = score(clip_row(write_talk(tmp_path / "late.mp4", talk), talk))
    thirds = [late[f"sync_offset_{part}"] for part in ("first", "middle", "last")]
    assert thirds == [-6, -6, -6] and late["sync_offset_applied"] == -6 and late["sync_drift"] == 0
    assert late["sync_drift_c"] == pytest.approx(late["sync_c_valid"], rel=0.2)


def test_sound_of_another_speed_is_seen_in_the_thirds(score: Callable[..., dict], tmp_path: Path) -> None:
    talk, drawn = draw_talk(9, 6.0), draw_talk(9, 6.0)
    samples = np.arange(len(talk.audio))
    early = 8 * 640 * (samples / len(samples) - 0.5)  # 4 frames late at first, 4 early in the end
    slow = np.interp(samples + early, samples, drawn.audio).astype(np.float32)
    path = write_talk(tmp_path / "slow.mp4", type(talk)(talk.frames, slow, talk.loudness))
    outputs = score(clip_row(path, talk), SyncConfig(max_correction=0))
    assert outputs["sync_offset_first"] < 0 < outputs["sync_offset_last"] and abs(outputs["sync_offset_middle"]) <= 1
    assert outputs["sync_drift"] == pytest.approx(8, abs=2) and outputs["sync_drift_c"] > 1.3 * outputs["sync_c"]


def test_a_run_killed_after_the_rewrite_does_the_same_again(score: Callable[..., dict], tmp_path: Path) -> None:
    row = clip_row(write_talk(tmp_path / "late.mp4", draw_talk(5, shift=4)), draw_talk(5))
    first = score(row)
    assert score(row) == first  # the file has been rewritten meanwhile, its picture and the source have not


def test_an_offset_out_of_reach_or_without_confidence_stays(score: Callable[..., dict], tmp_path: Path) -> None:
    row = clip_row(write_talk(tmp_path / "late.mp4", draw_talk(5, shift=4)), draw_talk(5))
    assert score(row, SyncConfig(max_correction=3, min_correction_c=0.3))["sync_offset_applied"] == 0
    unsure = score(row, SyncConfig(min_correction_c=100))
    assert (unsure["sync_offset"], unsure["sync_offset_applied"]) == (-4, 0)
    assert sha256_file(tmp_path / "clips" / "clip.mp4") == row["sha256"]


def test_the_face_that_speaks_is_chosen(score: Callable[..., dict], tmp_path: Path) -> None:
    talk, other = draw_talk(5), draw_talk(6)
    pair = np.concatenate([other.frames, talk.frames], axis=2)
    path = write_talk(tmp_path / "pair.mp4", type(talk)(pair, talk.audio, talk.loudness))
    row = clip_row(path, talk) | {"width": 128}
    row["faces"] = [(t, [[16, 32, 32, 48], [80, 32, 96, 48]]) for t, _ in row["faces"]]
    outputs = score(row)
    assert outputs["n_faces_median"] == 2 and outputs["sync_offset"] == 0 and outputs["speaker_evidence"] == "sync"
    row["faces"] = [(t, [[80, 32, 96, 48]]) for t, _ in row["faces"]]
    alone = score(row)
    assert outputs["sync_c"] == alone["sync_c"] > 2 * _score_of(score, row, [16, 32, 32, 48])


def _score_of(score: Callable[..., dict], row: dict, box: list[int]) -> float:
    return score(row | {"faces": [(t, [box]) for t, _ in row["faces"]]}, SyncConfig(max_correction=0))["sync_c"]


def test_a_clip_without_a_face_has_no_score(score: Callable[..., dict], tmp_path: Path) -> None:
    row = clip_row(write_talk(tmp_path / "right.mp4", draw_talk(5)), draw_talk(5)) | {"faces": []}
    assert score(row) == {}


def test_the_sound_scored_is_the_sound_written(tmp_path: Path) -> None:
    """Moving sound before scoring and cutting with the shift must be the same thing."""
    path = write_talk(tmp_path / "source.mp4", draw_talk(7, 6.0))
    cut = partial(cut_clip, path, tmp_path / "cut.mp4", 1.0, 4.0)
    cut(audio_shift=0.2)
    assert np.abs(read_audio(tmp_path / "cut.mp4") - read_audio(path, AUDIO_RATE, 0.8, 3.8)).max() < 0.1


def _distances(path: np.ndarray, noise: float = 0.5, seed: int = 0, most: int = 15) -> np.ndarray:
    """Distances (L, 2V+1) with their minimum at offset `path` (L,): 10 elsewhere, 4 there."""
    distances = np.random.default_rng(seed).normal(10, noise, (len(path), 2 * most + 1))
    distances[np.arange(len(path)), most - np.rint(path).astype(int)] -= 6
    return distances


@pytest.mark.parametrize("offset", [-10, -3, 0, 7])
def test_a_constant_offset_is_no_drift(offset: int) -> None:
    drift = measure_drift(_distances(np.full(80, offset)))
    assert drift is not None and drift.thirds == (offset,) * 3 and drift.frames == 0
    assert drift.confidence == pytest.approx(6, abs=0.3)


@pytest.mark.parametrize(("start", "end"), [(-4, 4), (4, -4), (0, 6), (10, 2)])
def test_a_line_is_followed(start: int, end: int) -> None:
    drift = measure_drift(_distances(np.linspace(start, end, 120)))
    assert drift is not None and drift.frames == pytest.approx(end - start, abs=1)
    assert drift.thirds[1] == pytest.approx((start + end) / 2, abs=1.01)
    assert np.sign(drift.thirds[2] - drift.thirds[0]) == np.sign(end - start)
    assert drift.confidence == pytest.approx(6, abs=0.8)


def test_chance_is_not_synchronous_along_any_line() -> None:
    """Every window has its own best shift: each third finds some offset, no line finds them all."""
    paths = [np.random.default_rng(seed).integers(-15, 16, 90) for seed in range(20)]
    found = [measure_drift(_distances(path, seed=seed)) for seed, path in enumerate(paths)]
    assert max(drift.confidence for drift in found if drift) < 2


def test_thirds_off_the_line_are_no_drift() -> None:
    """Half of the windows follow a slope, the last third has an offset of its own: it may be anything but a drift."""
    path = np.concatenate([np.linspace(-4, 2, 80), np.full(40, -9)])
    drift = measure_drift(_distances(path))
    assert drift is not None and drift.frames is None and drift.thirds[2] == -9


def test_sound_beyond_the_ends_is_not_looked_at() -> None:
    distances = _distances(np.zeros(60))
    heard = np.arange(60)[:, None] + np.arange(-15, 16)
    distances[(heard < 0) | (heard >= 60)] = 0  # what zero padding may give
    drift = measure_drift(distances)
    assert drift is not None and drift.thirds == (0, 0, 0) and drift.frames == 0


def test_too_short_to_say() -> None:
    assert measure_drift(_distances(np.zeros(44))) is None
    assert measure_drift(_distances(np.zeros(45))) is not None
