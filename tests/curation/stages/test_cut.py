"""Clip files: frame for frame and sample for sample what the row says."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from common.media.audio import read_audio
from common.media.index import probe
from common.media.video import read_video
from common.media.write import write_video
from common.runs import sha256_file
from curation.config import CutConfig
from curation.stages.cut import CutStage, cut_row
from tests.common.media.test_video import click_times, clicks, number_of, numbered
from tests.curation.conftest import FACE, clip_row, draw_talk, write_talk
from tests.curation.stages.test_shots import clip_rows, segment, source


def test_the_file_holds_the_piece_at_25_fps(tmp_path: Path) -> None:
    talk = draw_talk(3, 4.0)
    path = write_talk(tmp_path / "source.mp4", talk)
    row = clip_row(path, talk) | {"t_start": 1.0, "t_end": 3.2}
    outcome = cut_row(tmp_path / "clips", row)
    file = tmp_path / "clips" / "clip.mp4"
    described = probe(file)
    assert (described.frames, described.audio_rate) == (55, 16000) and described.fps == pytest.approx(25)
    assert np.abs(read_video(file).astype(int) - read_video(path)[25:80]).mean() < 4
    assert outcome.outputs == {"sha256": sha256_file(file)}
    assert cut_row(tmp_path / "clips", row).outputs == outcome.outputs


def test_a_source_that_broke_since_is_refused(tmp_path: Path) -> None:
    talk = draw_talk(3, 4.0)
    path = write_talk(tmp_path / "source.mp4", talk)
    path.write_bytes(path.read_bytes()[:2000])
    outcome = cut_row(tmp_path / "clips", clip_row(path, talk))
    assert (outcome.state, outcome.reason) == ("rejected", "truncated")


def test_the_file_of_an_exact_row_starts_on_its_frame_and_keeps_its_sound(tmp_path: Path) -> None:
    """Frames that show their number, a click on every tenth; a row from 0.613 s on."""
    write_video(tmp_path / "source.mp4", numbered(100), clicks(100))
    described = asdict(probe(tmp_path / "source.mp4"))
    video = source(**described, path=str(tmp_path / "source.mp4"), cuts=[], segments=[segment(0.613, 2.62)])
    row = clip_rows(CutConfig(use_segments="exact", min_seconds=1), video)[0]
    assert cut_row(tmp_path / "clips", row).state == "kept"
    file = tmp_path / "clips" / f"{row['unit']}.mp4"
    assert [number_of(frame) for frame in read_video(file)] == list(range(15, 65)) and row["duration"] == 2.0
    assert len(read_audio(file)) == 32_000
    assert click_times(read_audio(file)) == pytest.approx(np.arange(0.8, 2.6, 0.4) - 0.613, abs=0.003)


def test_a_crop_is_cut_out_of_the_picture_and_resized(tmp_path: Path) -> None:
    talk = draw_talk(3, 2.4)
    path = write_talk(tmp_path / "source.mp4", talk)
    described = asdict(probe(path))
    x0, y0, x1, y1 = FACE
    crop = [x0 - 4, y0 - 8, 32, 32]
    video = source(
        **described, path=str(path), cuts=[], segments=[segment(0, 2.4, crop=crop)], faces=[(0, [list(FACE)])]
    )
    row = clip_rows(CutConfig(use_segments="exact", min_seconds=1, crop_side=96), video)[0]
    assert cut_row(tmp_path / "clips", row).state == "kept"
    shown = read_video(tmp_path / "clips" / f"{row['unit']}.mp4")
    assert shown.shape == (60, 96, 96, 3)
    wanted = read_video(path)[:, crop[1] : crop[1] + 32, crop[0] : crop[0] + 32]
    assert np.abs(shown[:, 1::3, 1::3].astype(int) - wanted).mean() < 4
    # The face is where the row says that it is.
    ((left, top, right, bottom),) = row["faces"][0][1]
    assert (left, top, right, bottom) == (12, 24, 60, 72)
    assert shown[0, 30:66, 18:54].mean() > 190
    outside = row | {"crop": [40, 40, 32, 32]}
    assert (cut_row(tmp_path / "clips", outside).state, cut_row(tmp_path / "clips", outside).reason) == (
        "rejected",
        "bad_crop",
    )


def test_another_crop_is_another_cut(tmp_path: Path) -> None:
    stage = CutStage(tmp_path)
    row = {"unit": "a", "source_sha256": "b", "t_start": 0.0, "t_end": 2.0, "crop": None, "size": None}
    assert stage.input_hash(row) != stage.input_hash(row | {"crop": [0, 0, 8, 8]})
