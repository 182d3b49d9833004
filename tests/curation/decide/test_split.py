"""Splits of planted videos, some of which show the same: exact counts, nothing shared, the same for the same seed."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from common.clips import write_clips
from curation.decide.split import HeldOut, draw_split, read_split, write_split
from tests.curation.decide.drawn_rows import splits_of

VIDEOS, CLIPS = 300, 6


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """300 videos of 6 clips, the last one refused; video 3n+1 shows a clip of 3n, 3n+2 another one of 3n+1."""
    drawn = []
    for video in range(VIDEOS):
        for clip in range(CLIPS):
            name = f"{video:03d}{clip:02d}"
            row = {"clip_id": name, "video_id": f"v{video:03d}", "t_start": float(clip), "t_end": clip + 1.0}
            drawn.append(row | {"decision": "rejected" if clip == 5 else "kept", "dup_group": None})
    for video in range(VIDEOS):
        if video % 3:
            first, copy = (video - 1) * CLIPS + 2 * (video % 3), video * CLIPS
            drawn[copy] |= {"dup_group": drawn[first]["clip_id"], "decision": "rejected"}
            drawn[first]["dup_group"] = drawn[first]["clip_id"]
    return drawn


@pytest.fixture(scope="module")
def clips(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows as a clip table."""
    path = tmp_path_factory.mktemp("run") / "clips.parquet"
    write_clips(path, rows)
    return path


def family(video_id: str) -> int:
    return int(video_id[1:]) // 3


@pytest.mark.parametrize("seed", range(3))
def test_by_video_nothing_is_in_both(rows: list[dict[str, Any]], clips: Path, seed: int) -> None:
    held = draw_split(clips, 90, seed)
    splits = splits_of(held, rows)
    of = {split: [row for row in rows if splits[row["clip_id"]] == split] for split in ("test", "held_out", "train")}
    assert len(of["test"]) == len(held.clips) == 90 and {row["decision"] for row in of["test"]} == {"kept"}
    tested = [family(row["video_id"]) for row in of["test"]]
    assert len(set(tested)) == 90
    assert set(tested).isdisjoint(family(row["video_id"]) for row in of["train"])
    groups = {row["dup_group"] for row in of["test"]} - {None}
    assert groups.isdisjoint(row["dup_group"] for row in of["train"])
    assert {family(row["video_id"]) for row in of["held_out"]} <= set(tested)
    assert len(of["train"]) == 10 * 3 * CLIPS


def test_by_clip_other_clips_of_the_video_stay_in_training(rows: list[dict[str, Any]], clips: Path) -> None:
    held = draw_split(clips, 100, by="clip")
    splits = splits_of(held, rows)
    assert sum(split == "test" for split in splits.values()) == 100
    tested = {row["video_id"] for row in rows if splits[row["clip_id"]] == "test"}
    assert any(splits[row["clip_id"]] == "train" and row["video_id"] in tested for row in rows)
    groups = {row["dup_group"] for row in rows if splits[row["clip_id"]] == "test"} - {None}
    copies = [row for row in rows if row["dup_group"] in groups]
    assert copies and {splits[row["clip_id"]] for row in copies} == {"test", "held_out"}


def test_a_seed_is_a_split_and_hardly_changes_with_what_is_added(
    rows: list[dict[str, Any]], clips: Path, tmp_path: Path
) -> None:
    held = draw_split(clips, 50, 7)
    assert draw_split(clips, 50, 7) == held
    assert draw_split(clips, 50, 8) != held
    more = [*rows, rows[0] | {"clip_id": "new", "video_id": "w"}]
    assert splits_of(held, more) == splits_of(held, rows) | {"new": "train"}
    write_clips(tmp_path / "more.parquet", more)
    before, after = (
        {clip[0] for clip in split.clips} for split in (held, draw_split(tmp_path / "more.parquet", 50, 7))
    )
    assert len(before & after) >= 49


def test_the_published_list_gives_the_split_back(clips: Path, tmp_path: Path) -> None:
    held = draw_split(clips, 20)
    write_split(tmp_path / "test.tsv", held)
    assert read_split(tmp_path / "test.tsv") == held
    lines = (tmp_path / "test.tsv").read_text().splitlines()
    assert lines[0] == "# 20 test clips by video, seed 0: clip_id video_id t_start t_end"
    (tmp_path / "short.tsv").write_text("\n".join(lines[:-1]))
    with pytest.raises(ValueError, match="says 20 clips and holds 19"):
        read_split(tmp_path / "short.tsv")
    (tmp_path / "bad.tsv").write_text("\n".join([lines[0], "one two"]))
    with pytest.raises(ValueError, match="line 2 is 'one two'"):
        read_split(tmp_path / "bad.tsv")
    (tmp_path / "other.tsv").write_text("clip\n")
    with pytest.raises(ValueError, match="begins with 'clip'"):
        read_split(tmp_path / "other.tsv")


def test_too_few_videos_are_an_error_and_an_absent_test_clip_still_keeps_its_video_out(rows: list, clips: Path) -> None:
    with pytest.raises(ValueError, match="needs as many unconnected videos with kept clips, and there are 100"):
        draw_split(clips, 101)
    with pytest.raises(FileNotFoundError, match="run the curation job"):
        draw_split(clips.parent / "gone.parquet", 1)
    held = HeldOut("video", 0, (("gone", "v007", 0.0, 1.0),))
    splits = splits_of(held, rows)
    assert {row["video_id"] for row in rows if splits[row["clip_id"]] == "held_out"} == {"v006", "v007", "v008"}


@pytest.mark.parametrize("video", ["a\tb.mp4", 'say "hi".mp4', "two\nlines.mp4", "one\u2028two\x85.mp4", '"quoted"'])
def test_a_split_reads_back_whatever_videos_are_called(tmp_path: Path, video: str) -> None:
    held = HeldOut("video", 3, (("c-0", video, 0.0, 1.5), ("c-1", "plain.mp4", 1.0, 2.0)))
    write_split(tmp_path / "t.tsv", held)
    assert read_split(tmp_path / "t.tsv") == held
    text = (tmp_path / "t.tsv").read_bytes()
    (tmp_path / "t.tsv").write_bytes(
        b"\xef\xbb\xbf" + text.replace(b"plain.mp4\t1.000\t2.000\n", b"plain.mp4\t1.000\t2.000\r\n\r\n")
    )
    assert read_split(tmp_path / "t.tsv") == held


def test_the_draw_is_the_one_that_was_published(clips: Path) -> None:
    """Lists drawn earlier can be drawn again: by the SHA-256 of the seed and the id, written out here."""

    def key(name: str) -> str:
        return hashlib.sha256(f"3\0{name}".encode()).hexdigest()

    names = sorted((f"{video:03d}{clip:02d}" for video in range(VIDEOS) for clip in range(1, 5)), key=key)
    copies = {f"{video:03d}00" for video in range(VIDEOS) if video % 3 == 0}
    everything = sorted([*names, *copies], key=key)[:40]
    assert [clip[0] for clip in draw_split(clips, 40, 3, "clip").clips] == sorted(everything)
    best = {family: min((n for n in [*names, *copies] if int(n[:3]) // 3 == family), key=key) for family in range(100)}
    drawn = sorted(best, key=lambda family: key(f"v{3 * family:03d}"))[:40]
    assert [clip[0] for clip in draw_split(clips, 40, 3).clips] == sorted(best[family] for family in drawn)
