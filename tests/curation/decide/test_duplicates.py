"""Planted copies are found whatever was done to them; people who look or sound alike are not copies."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from common.media.write import write_video
from curation.config import DuplicatesConfig
from curation.decide.duplicates import best_overlap, find_overlaps, group_duplicates
from curation.decide.fingerprints import (
    fingerprint_clip,
    image_hash,
    loudness_curve,
    read_fingerprints,
    write_fingerprints,
)
from curation.stages.cut import cut_row
from miniature.world.clips import draw_clip
from tests.curation.conftest import Talk, clip_row

FIELDS = [("clip_id", pa.string()), ("video_id", pa.string()), ("t_start", pa.float64()), ("duration", pa.float64())]
SCHEMA = pa.schema(
    [*FIELDS, ("cut_sha256", pa.string()), ("hashes", pa.list_(pa.string())), ("loudness", pa.list_(pa.int32()))]
)


def found(search: Callable[..., pa.Table], rows: list[dict], *arguments: Any) -> list[str | None]:
    """What a search says of each row; clips without a video come by their names."""
    named = [{"video_id": row["unit"], "t_start": 0.0} | row | {"clip_id": row["unit"]} for row in rows]
    with duckdb.connect() as connection:
        connection.register("rows", pa.Table.from_pylist(named, SCHEMA))
        answers = dict(
            zip(*search(DuplicatesConfig(), connection, "rows", *arguments).to_pydict().values(), strict=True)
        )
    return [answers.get(row["unit"]) for row in rows]


def groups_of(rows: list[dict]) -> list[str | None]:
    return found(group_duplicates, rows)


@pytest.fixture
def row(tmp_path: Path):
    """Makes the fingerprinted row of a clip with these pictures and this sound."""

    def make(name: str, frames: np.ndarray, audio: np.ndarray, crf: int = 18) -> dict:
        path = tmp_path / f"{name}.mp4"
        write_video(path, frames, audio, crf=crf)
        clip = clip_row(path, Talk(frames, audio, audio), name)
        clip["cut_sha256"] = cut_row(tmp_path / "clips", clip).outputs["sha256"]
        return clip | fingerprint_clip(tmp_path / "clips" / f"{name}.mp4")

    return make


def test_copies_are_found_and_the_first_stays(row) -> None:
    one, two = draw_clip(11), draw_clip(12)
    rows = [
        row("a_original", one.frames, one.audio),
        row("b_other", two.frames, two.audio),
        row("c_same_bytes", one.frames, one.audio),
        row("d_coded_again", one.frames, 0.8 * one.audio, crf=26),
        row("e_other_sound", one.frames, two.audio),
        row("f_other_face", two.frames, one.audio),
    ]
    groups = groups_of(rows)
    assert groups == ["a_original", None, "a_original", "a_original", None, None]


def test_a_chain_of_copies_is_one_group(row) -> None:
    one = draw_clip(11)
    rows = [row(name, one.frames, one.audio, crf) for name, crf in (("a", 18), ("b", 24), ("c", 28))]
    assert groups_of(rows) == ["a", "a", "a"]


def test_forty_people_are_forty_people(row) -> None:
    clips = [draw_clip(seed, 3.0) for seed in range(40)]
    rows = [
        {"unit": str(n), "cut_sha256": str(n), "duration": 3.0, "loudness": loudness_curve(clip.audio)}
        | {"hashes": [f"{image_hash(clip.frames[at]):016x}" for at in (12, 37, 62)]}
        for n, clip in enumerate(clips)
    ]
    assert groups_of(rows) == [None] * 40


def test_silent_clips_are_distinguished_by_their_images(row) -> None:
    one, two = draw_clip(11), draw_clip(12)
    silence = np.zeros(75 * 640, np.float32)
    rows = [row("a", one.frames, silence), row("b", one.frames, silence, crf=21), row("c", two.frames, silence)]
    assert groups_of(rows)[2] is None


def fingerprint(name: str, hashes: list[int], loudness: list[int]) -> dict:
    return {
        "unit": name, "cut_sha256": name, "duration": len(loudness) / 10, "loudness": loudness,
        "hashes": [f"{value:016x}" for value in hashes],
    }  # fmt: skip


def test_planted_copies_among_thousands_are_all_found_and_nothing_else() -> None:
    """Of 3,000 clips every tenth comes again, a few bits of its pictures and a decibel here and there changed."""
    rng = np.random.default_rng(0)
    rows = [
        fingerprint(f"{n:04d}", rng.integers(0, 2**63, 3).tolist(), rng.integers(-50, -5, 20 + n % 150).tolist())
        for n in range(3000)
    ]
    for row in rows[::10]:
        hashes = [
            int(digits, 16) ^ sum(1 << int(bit) for bit in set(rng.integers(0, 64, 5))) for digits in row["hashes"]
        ]
        rows.append(
            fingerprint(f"{row['unit']}x", hashes, [level + int(rng.integers(-1, 2)) for level in row["loudness"]])
        )
    groups = groups_of(rows)
    assert groups[3000:] == [row["unit"] for row in rows[:3000:10]]
    assert [name for name in groups[:3000] if name] == [row["unit"] for row in rows[:3000:10]]


def test_a_key_that_everybody_has_does_not_compare_everybody() -> None:
    """Black pictures and silence, each clip a little longer: one group, found without half of the pairs."""
    rows = [fingerprint(str(n), [0, 0, 0], [-60] * 20) | {"duration": 2 + n / 1e5} for n in range(1000)]
    assert groups_of(rows) == ["0"] * 1000


def test_a_test_set_is_recognised_however_it_was_cut(row, tmp_path: Path) -> None:
    """The reference holds seconds 0 to 6 of a person; others hold 2.45 to 8.45, or another person."""
    one, two = draw_clip(11, 9.0), draw_clip(12, 9.0)
    reference = row("held_out", one.frames[:150], one.audio[: 6 * 16_000])
    write_fingerprints(tmp_path / "test_set.jsonl", [reference])
    late = slice(round(2.45 * 16_000), round(8.45 * 16_000))
    rows = [
        row("same_talk_later", one.frames[61:211], 0.7 * one.audio[late], crf=26),
        row("other_person", two.frames[:150], two.audio[: 6 * 16_000]),
        row("same_face_other_words", one.frames[:150], two.audio[: 6 * 16_000]),
        row("other_face_same_words", two.frames[:150], one.audio[: 6 * 16_000]),
        reference | {"unit": "itself"},
    ]
    references = read_fingerprints(tmp_path / "test_set.jsonl")
    assert found(find_overlaps, rows, references) == ["held_out", None, None, None, "held_out"]
    assert found(find_overlaps, rows, []) == [None] * 5
    assert found(find_overlaps, [], references) == []


def test_the_best_shift_in_closed_form() -> None:
    curve = np.random.default_rng(0).integers(-60, 0, 90)
    assert best_overlap(curve[:60], curve[25:], 3.0) == pytest.approx(1)
    assert best_overlap(curve[:60], 0.5 * curve[25:] - 3, 3.5) == pytest.approx(1, abs=0.02)
    assert best_overlap(curve[:60], curve[45:], 3.0) < 0.7  # only 1.5 s are shared
    assert best_overlap(curve[:20], curve[:20], 3.0) == -1
    assert best_overlap([-60] * 50, curve[:50], 3.0) == -1
