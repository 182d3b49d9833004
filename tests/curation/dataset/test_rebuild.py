"""The clips of a list from nothing but the list: byte for byte, or with a word on why not."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.clips import read_clips, write_clips
from common.executors.config import ExecutorConfig
from common.media.video import read_video
from common.runs import RunFolder, sha256_file
from curation.config import DownloadConfig, EgressConfig
from curation.dataset.freeze import freeze
from curation.dataset.rebuild import rebuild
from curation.dataset.versions import withdraw
from tests.curation.conftest import draw_talk, write_talk
from tests.curation.frozen import RULES, make_run, write_videos
from tests.curation.web import Answer, Web, serve

HERE = ExecutorConfig(workers=1)
QUICK = EgressConfig(per_hour=1e9, pause_seconds=(0.0, 0.0), request_pause_seconds=0.0, max_bytes_per_second=0)
DOWNLOAD = DownloadConfig(egress=(QUICK,), network_tries=2, backoff_seconds=0.01, allow_private_addresses=True)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as served:
        yield served


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return write_videos(tmp_path / "videos")


def frozen(run: RunFolder, folder: Path) -> Path:
    return folder / f"{freeze(run, RULES, folder, HERE)['name']}.json"


def states(table: object) -> dict[str, list[tuple[str, str | None]]]:
    """Video -> states and why of its clips."""
    found: dict[str, list[tuple[str, str | None]]] = {}
    for row in table.to_pylist():  # type: ignore[attr-defined]
        found.setdefault(row["video_id"], []).append((row["state"], row["why"]))
    return found


def test_another_person_gets_the_same_clips_from_the_web(web: Web, videos: Path, tmp_path: Path) -> None:
    urls = {name: web.add_video(name, (videos / f"{name}.mp4").read_bytes()) for name in ("one", "two")}
    run = make_run(tmp_path / "run", videos, urls)
    path = frozen(run, tmp_path / "lists")
    other = RunFolder(tmp_path / "other")
    report = rebuild(path, other, HERE, DOWNLOAD)
    assert set(report.table["state"].to_pylist()) == {"same_bytes"}
    assert {f.name: f.read_bytes() for f in other.clips.iterdir()} == {
        f.name: f.read_bytes() for f in run.clips.iterdir()
    }
    assert report.lines() == [f"list {path.stem}: 3 clips", "       3 clips of 2 videos: same bytes"]
    asked = len(web.asked)
    next(other.clips.iterdir()).unlink()
    assert rebuild(path, other, HERE, DOWNLOAD).table == report.table and len(list(other.clips.iterdir())) == 3
    assert len(web.asked) == asked


def test_what_has_vanished_is_told_by_its_class(web: Web, videos: Path, tmp_path: Path) -> None:
    urls = {"one": web.add_video("one", b"", Answer(404)), "two": web.add_video("two", b"", Answer(403))}
    path = frozen(make_run(tmp_path / "run", videos, urls), tmp_path)
    report = rebuild(path, RunFolder(tmp_path / "other"), HERE, DOWNLOAD)
    assert states(report.table) == {"one": [("gone", "removed")] * 2, "two": [("gone", "forbidden")]}
    assert report.lines()[1] == "       2 clips of 1 videos: gone (removed)"
    withdraw(path, "two", "hash")
    report = rebuild(path, RunFolder(tmp_path / "third"), HERE)
    assert states(report.table) == {"one": [("gone", "not at hand")] * 2, None: [("taken_down", None)]}


def test_other_bytes_are_compared_by_content(videos: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", videos)
    rows = read_clips(run.clips_parquet)
    for row in rows:
        file = run.clips / f"{row['clip_id']}.mp4"
        if row["video_id"] == "one" and file.exists():  # a box that players pass over
            file.write_bytes(file.read_bytes() + (64).to_bytes(4, "big") + b"free" + bytes(56))
            row["sha256"] = sha256_file(file)
    write_clips(run.clips_parquet, rows)
    path = frozen(run, tmp_path)
    write_talk(videos / "two.mp4", draw_talk(7, 2.0))
    report = rebuild(path, RunFolder(tmp_path / "other"), HERE, videos=str(videos))
    assert states(report.table) == {
        "one": [("same_content", None)] * 2,
        "two": [("changed", "another source file")],
    }


def test_a_crop_follows_the_size_of_the_video(videos: Path, tmp_path: Path) -> None:
    path = frozen(run := make_run(tmp_path / "run", videos), tmp_path)
    talk = draw_talk(1, 2.0)
    write_talk(videos / "two.mp4", replace(talk, frames=talk.frames.repeat(2, axis=1).repeat(2, axis=2)))
    other = RunFolder(tmp_path / "other")
    report = rebuild(path, other, HERE, videos=str(videos))
    assert states(report.table)["two"] == [("changed", "another source file")]
    (name,) = (row["clip_id"] for row in report.table.to_pylist() if row["video_id"] == "two")
    seen, before = (read_video(each.clips / f"{name}.mp4").astype(float) for each in (other, run))
    assert seen.shape == before.shape and np.abs(seen - before).mean() < 8
    write_talk(videos / "two.mp4", replace(talk, frames=talk.frames[:, :, :32]))
    narrow = rebuild(path, RunFolder(tmp_path / "narrow"), HERE, videos=str(videos))
    assert states(narrow.table)["two"] == [("gone", "bad_crop")]
