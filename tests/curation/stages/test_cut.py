"""How shots become clips: lengths in closed form, files frame for frame."""

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
from curation.stages.cut import CutStage, cut_row, source_fields, split_shots, split_source
from curation.stages.scan import Scan
from tests.common.media.test_video import click_times, clicks, number_of, numbered
from tests.curation.conftest import FACE, clip_row, draw_talk, write_talk

CONFIG = CutConfig(2.0, 20.0)


def source(**changes: object) -> dict:
    row = {
        "unit": "video", "path": "video.mp4", "source": "folder", "row_index": None, "sha256": "abc", "fps": 25.0,
        "duration": 8.0, "width": 64, "height": 64, "codec": "h264", "audio_rate": 16000, "video_start": 0.0,
        "audio_start": 0.0, "cuts": [4.0], "faces": [], "motion": [10] * 199,
    }  # fmt: skip
    return row | changes


def clip_rows(config: CutConfig, source: dict) -> list[dict]:
    """The rows of the clips of a source, each with the `faces` in it."""
    pieces = split_source(config, source, Scan(source["faces"], source["motion"]))  # type: ignore[arg-type]
    return [{**source_fields(source), **piece.row, "faces": piece.faces} for piece in pieces]  # type: ignore[arg-type]


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


def segment(start: float, end: float, number: int = 0, **changes: object) -> dict:
    return {"row_index": number, "start": start, "end": end, "x": 0.25, "y": 0.5} | changes


def spans(rows: list[dict]) -> list[tuple]:
    return [(row["t_start"], row["t_end"], row["row_index"]) for row in rows]


def test_shots_grow_beyond_the_rows_of_a_data_set_and_untouched_shots_are_left_out() -> None:
    rows = [segment(4.5, 7.0, 7), segment(7.0, 7.9, 8), segment(30.0, 36.0, 9)]
    video = source(duration=60.0, cuts=[4.0, 8.0, 20.0], segments=rows)
    clips = clip_rows(CONFIG, video)
    assert spans(clips) == [(4.0, 8.0, 7), (20.0, 40.0, 9)]
    assert [(clip["x"], clip["y"], clip["point_at"]) for clip in clips] == [(0.25, 0.5, 0.5), (0.25, 0.5, 10.0)]
    everything = clip_rows(CutConfig(use_segments="ignore"), video)
    assert [clip["t_end"] for clip in everything] == [4.0, 8.0, 20.0, 40.0, 60.0] and "x" not in everything[0]


def test_a_row_that_only_touches_a_shot_does_not_keep_it() -> None:
    assert spans(clip_rows(CONFIG, source(segments=[segment(4.0, 7.0)]))) == [(4.0, 8.0, 0)]


def test_exact_rows_are_cut_to_the_millisecond() -> None:
    rows = [segment(1.2345, 4.5), segment(3.001, 7.5, 1), segment(3.001, 7.5, 2), segment(9.0, 12.0, 3)]
    clips = clip_rows(CutConfig(use_segments="exact"), source(segments=rows))
    # Lengths are whole frames; two rows with one span are one clip; what the video does not hold has no length.
    assert spans(clips) == [(1.234, 4.474, 0), (3.001, 7.481, 1), (8.0, 8.0, 3)]
    assert [clip["shot_id"] for clip in clips] == [0, 0, 1]
    long = clip_rows(CutConfig(use_segments="exact"), source(duration=100.0, segments=[segment(10, 60)]))
    assert [clip["duration"] for clip in long] == [16.64, 16.68, 16.68]


def test_a_cropped_row_has_its_faces_and_its_point_in_the_crop() -> None:
    faces = [(1.0, [[40.0, 20.0, 60.0, 40.0], [0.0, 0.0, 10.0, 10.0]])]
    row = segment(0.5, 3.5, crop=[32, 16, 32, 32], x=0.75, y=0.5)
    clip = clip_rows(CutConfig(use_segments="exact", crop_side=64), source(faces=faces, segments=[row]))[0]
    assert (clip["crop"], clip["size"], clip["width"], clip["height"]) == ([32, 16, 32, 32], [64, 64], 64, 64)
    assert clip["faces"] == [(0.5, [[16.0, 8.0, 56.0, 48.0]])]
    assert (clip["x"], clip["y"], clip["point_at"]) == (0.5, 0.5, 0.0)


def test_an_odd_crop_side_is_refused() -> None:
    with pytest.raises(ValueError, match="crop_side 511: expected an even number"):
        CutConfig(crop_side=511)


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
