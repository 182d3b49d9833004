"""A video leaves clips, latents, a frozen list and a report; stopped at any step, the same call completes it."""

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.runs import RunFolder, read_json
from common.shards.store import ShardReader
from curation.config import SelectConfig
from curation.dataset.freeze import freeze
from curation.dataset.takedown import plan
from curation.dataset.versions import read_version
from latents.config import LatentsConfig
from latents.job import encode_clips
from pipelines.takedown import plan_lines, take_down
from tests.curation.frozen import RULES, make_run, write_videos
from tests.curation.withdrawn import draw_run
from tests.kill_loop import stopped_at
from tests.latents.conftest import encoder_folders

__all__ = ["encoder_folders"]

HERE = ExecutorConfig(workers=1)
LATENTS = LatentsConfig(buckets=((32, 32),), references=1, samples_per_shard=2)


@pytest.fixture(scope="module")
def finished(encoder_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("finished")
    run = make_run(folder / "run", write_videos(folder / "videos"))
    freeze(run, RULES, run.root / "versions", HERE)
    encode(run, encoder_folders)
    (run.report / "index.html").write_text("".join(f"<img src='{file.name}'>" for file in run.clips.iterdir()))
    return run


def encode(run: RunFolder, folders: dict[str, Path]) -> None:
    kept = [row for row in read_clips(run.clips_parquet) if row["decision"] == "kept"]
    encode_clips(LATENTS, kept, folders, run, HERE)


def copy_of(run: RunFolder, folder: Path) -> RunFolder:
    shutil.copytree(run.root, folder)
    return RunFolder(folder)


def contents(run: RunFolder) -> dict[str, Any]:
    """What the run holds: bytes of files, rows of tables that carry times; not when it was withdrawn."""
    files = sorted(file for file in run.root.rglob("*") if file.is_file() and file.parent.name != "ledger")
    held: dict[str, Any] = {file.relative_to(run.root).as_posix(): file.read_bytes() for file in files}
    for name in [name for name in held if name.startswith("takedowns/")]:
        held[name] = {key for key in read_json(run.root / name)}
    for file in sorted(run.ledger.iterdir()):
        if file.suffix == ".parquet":
            held[f"ledger/{file.name}"] = pq.read_table(file, columns=["unit", "state", "outputs"]).to_pylist()
    return held


def test_nothing_of_it_is_left_and_all_is_counted(
    finished: RunFolder,
    encoder_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    run = copy_of(finished, tmp_path / "run")
    ids = [row["clip_id"] for row in read_clips(run.clips_parquet) if row["video_id"] == "one"]
    before, planned = contents(run), plan_lines(run, plan(run, "one"), every_file=True)
    assert contents(run) == before and {f"clips/{ids[0]}.mp4", "report/index.html"} <= set(planned)
    report = take_down(run, "one", SelectConfig())
    said = report.lines()[0].split("; ")[0]
    (listed,) = (run.root / "versions").glob("*.json")
    # Two clips kept and one refused, which has no file; each clip file and each file of the cache.
    counts = {"lists": {listed.stem: 2}, "clip_rows": 3, "table_rows": 1, "files": 4, "samples": 2}
    assert report.removed.pop("ledger_rows") >= 4 and report.removed == counts
    assert (report.shards_version, report.named, report.trained) == (2, [], False)
    assert (report.pages, report.notes) == (["report/index.html"], [])
    assert planned[0].removeprefix("to remove of 'one': ") == said.removeprefix("removed: ")
    assert report.lines()[0].startswith("removed: 3 clip rows, 1 table rows, 4 files")
    assert f"list {listed.stem}: 2 clips became tombstones; publish it again" in report.lines()
    reader = ShardReader(run.shards)
    assert [reader.sample(n)[1]["video_id"] for n in range(len(reader))] == ["two"]
    header, _ = read_version(listed)
    assert (header["clips"], header["taken_down"]) == (1, 2)
    names = " ".join(file.name for file in run.root.rglob("*"))
    assert not [name for name in ids if name in names] and not (run.report / "index.html").exists()
    before = contents(run)
    encode(run, encoder_folders)
    assert contents(run) == before


def test_a_second_one_of_the_same_video_changes_nothing(finished: RunFolder, tmp_path: Path) -> None:
    run = copy_of(finished, tmp_path / "run")
    take_down(run, "one", SelectConfig())
    before = contents(run)
    again = take_down(run, "one", SelectConfig())
    assert contents(run) == before and again.removed["clip_rows"] == 0
    (counts,) = (read_json(file)["removed"] for file in (run.root / "takedowns").iterdir())
    assert counts["clip_rows"] == 3  # of the one that did something
    assert plan_lines(run, plan(run, "one"))[0].endswith("nothing of it is left to remove")
    with pytest.raises(ValueError, match="knows no video 'three'"):
        take_down(run, "three", SelectConfig())


def test_a_training_that_is_alive_is_said(tmp_path: Path) -> None:
    run = draw_run(tmp_path, ["1", "2"], True)
    beat = run.logs / "heartbeat-0.json"
    beat.write_text("{}")
    assert plan_lines(run, plan(run, "1"))[-1].startswith("a training of this run is alive")
    os.utime(beat, (time.time() - 600, time.time() - 600))
    assert not any("training" in line for line in plan_lines(run, plan(run, "1")))


@pytest.mark.parametrize("step", (0, 4, 8, 12, 16, 20, 22))
def test_stopped_at_any_change_of_a_file_it_is_completed(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    whole, run = copy_of(finished, tmp_path / "whole"), copy_of(finished, tmp_path / "run")
    take_down(whole, "one", SelectConfig())
    assert stopped_at(step, monkeypatch, lambda: take_down(run, "one", SelectConfig()))
    take_down(run, "one", SelectConfig())
    assert contents(run) == contents(whole)
