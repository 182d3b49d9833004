"""How shots become clips: lengths in closed form, files frame for frame."""

from pathlib import Path

import numpy as np
import pytest

from common.media import probe, read_video
from common.runs import sha256_file
from curation.cut import CutConfig, clip_rows, cut_row, split_shots
from tests.curation.conftest import clip_row, draw_talk, write_talk

CONFIG = CutConfig(2.0, 20.0)


def source(**changes: object) -> dict:
    row = {
        "unit": "video", "path": "video.mp4", "source": "folder", "row_index": None, "sha256": "abc", "fps": 25.0,
        "duration": 8.0, "width": 64, "height": 64, "codec": "h264", "audio_rate": 16000, "video_start": 0.0,
        "audio_start": 0.0, "cuts": [4.0], "faces": [], "motion": [10] * 199,
    }  # fmt: skip
    return row | changes


def test_a_short_video_is_one_clip() -> None:
    assert split_shots(CONFIG, 3.6, []) == [(0, 0.0, 3.6)]


def test_shots_are_kept_apart() -> None:
    assert split_shots(CONFIG, 7.2, [3.6]) == [(0, 0.0, 3.6), (1, 3.6, 7.2)]
    assert split_shots(CONFIG, 5.0, [1.0, 1.48]) == [(0, 0.0, 1.0), (1, 1.0, 1.48), (2, 1.48, 5.0)]


@pytest.mark.parametrize(("length", "pieces"), [(20.0, 1), (20.04, 2), (40.0, 2), (41.0, 3), (100.0, 5)])
def test_a_long_shot_is_cut_into_equal_pieces(length: float, pieces: int) -> None:
    cut = split_shots(CONFIG, length, [])
    lengths = [end - start for _, start, end in cut]
    assert len(cut) == pieces and cut[0][1] == 0 and cut[-1][2] == pytest.approx(length)
    assert max(lengths) <= 20 + 1e-9 and max(lengths) - min(lengths) <= 0.041
    assert all(before[2] == after[1] for before, after in zip(cut, cut[1:], strict=False))
    assert all(round(start * 25, 6).is_integer() for _, start, _ in cut)


def test_a_clip_never_reaches_into_the_next_shot() -> None:
    """At 30 fps a cut seldom lies on our 25 fps grid."""
    for cut in np.arange(61, 120) / 30:
        (_, _, end), (_, start, _) = split_shots(CONFIG, 6.0, [cut])
        assert end <= cut + 1e-3 and start == pytest.approx(cut, abs=6e-4)


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="min_seconds <= max_seconds / 2"):
        CutConfig(15.0, 20.0)


def test_rows_carry_the_source_and_their_own_faces_and_motion() -> None:
    faces = [(t, [[t, 0, 10, 10]]) for t in (0.0, 3.9, 4.0, 7.9)]
    first, second = clip_rows(CONFIG, source(faces=faces, motion=[10] * 100 + [0] * 99))
    assert (first["t_start"], first["t_end"], second["t_start"], second["t_end"]) == (0, 4, 4, 8)
    assert (first["shot_id"], second["shot_id"], second["duration"]) == (0, 1, 4.0)
    assert [t for t, _ in first["faces"]] == [0.0, 3.9] and [t for t, _ in second["faces"]] == [0.0, 3.9]
    assert first["static_pct"] < 3 and second["static_pct"] > 97
    assert first["clip_id"] != second["clip_id"] and first["source_sha256"] == "abc"


def test_clip_ids_hang_on_video_and_times_alone() -> None:
    ids = [row["clip_id"] for row in clip_rows(CONFIG, source())]
    assert ids == [row["clip_id"] for row in clip_rows(CONFIG, source(path="elsewhere.mp4", sha256="def", fps=30.0))]
    assert not set(ids) & {row["clip_id"] for row in clip_rows(CONFIG, source(unit="other"))}


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
