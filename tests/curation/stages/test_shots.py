"""How shots become clips: lengths and spans in closed form."""

import numpy as np
import pytest

from curation.config import CutConfig
from curation.rows import Scan
from curation.stages.shots import source_fields, split_shots, split_source

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


def test_what_dissolves_belongs_to_neither_shot() -> None:
    ends = [3.2, 6.0]
    assert split_shots(CONFIG, 9.0, [3.6, 6.0], (), ends) == [(0, 0.0, 3.2), (1, 3.6, 6.0), (2, 6.0, 9.0)]
    (first, second) = clip_rows(CONFIG, source(cuts=[4.0], shot_ends=[3.4], shot_judge="both"))
    assert (first["t_end"], second["t_start"]) == (3.4, 4.0) and first["shot_judge"] == "both"


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


@pytest.mark.parametrize(
    ("audio_span", "spans"),
    [
        ([0.0, 6.5], [(0.0, 4.0), (4.0, 6.48)]),  # the sound ends
        ([1.0, 8.0], [(1.0, 4.0), (4.0, 8.0)]),  # it begins late
        ([4.5, 6.0], [(4.5, 5.98)]),  # a whole shot is mute
        ([8.0, 8.0], []),
    ],
)
def test_no_clip_lies_where_there_is_no_sound(audio_span: list[float], spans: list[tuple[float, float]]) -> None:
    rows = clip_rows(CONFIG, source(audio_span=audio_span))
    assert [(row["t_start"], row["t_end"]) for row in rows] == spans
    assert all(row["shot_id"] == (row["t_start"] >= 4.0) for row in rows)


def test_an_exact_row_ends_with_the_sound() -> None:
    segment = {"row_index": 0, "start": 1.0, "end": 7.0, "x": None, "y": None}
    rows = clip_rows(CutConfig(2.0, 20.0, use_segments="exact"), source(audio_span=[0.0, 5.0], segments=[segment]))
    assert [(row["t_start"], row["t_end"]) for row in rows] == [(1.0, 5.0)]
