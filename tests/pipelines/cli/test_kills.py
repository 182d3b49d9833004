"""Commands that rewrite what a run holds, killed at every rename and removal of a file, and run again."""

import os
import shutil
from pathlib import Path

import pytest

from common.clips import read_clips
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder
from curation.config import SelectConfig
from curation.decide.reselect import reselect
from eval.sets.catalog import TestClip, TestSet, write_test_set
from tests.curation.withdrawn import FINGERPRINT, clip_of, draw_run
from tests.kill_loop import held, kill_loop, stopped_at
from tests.pipelines.test_takedown import encoder_folders, finished

__all__ = ["encoder_folders", "finished"]

ALONE = ("--recipe", "folder", "--set", "executor.workers=1")


@pytest.fixture(scope="module")
def base(finished: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and a list of videos to import, with its test set."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(finished.root, folder / "run")
    clips = [row["clip_id"] for row in read_clips(folder / "run" / "clips.parquet") if row["decision"] == "kept"]
    lines = [f"ours,{clip},run/clips/{clip}.mp4" for clip in clips]
    (folder / "list.csv").write_text("\n".join(["method,clip_id,video", *lines]) + "\n")
    write_test_set(
        folder / "test_set.csv", TestSet("ours", "all", 0, tuple(TestClip(clip, "v", 0, 1) for clip in clips))
    )
    return folder


COMMANDS: dict[str, tuple[str, ...]] = {
    "takedown": ("takedown", "--run", "{}/run", "--", "one"),
    "reselect": ("reselect", "--run", "{}/run", *ALONE),
    "freeze": ("freeze", "--run", "{}/run", *ALONE),
    "split": ("split", "--run", "{}/run", "--count", "1", "--out", "{}/test.tsv"),
    "import": ("eval", "import", "{}/list.csv", "--run", "{}/run"),
}


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_change_it_is_as_if_undisturbed(base: Path, tmp_path: Path, command: str) -> None:
    if command == "freeze":  # for the first time
        shutil.copytree(base, tmp_path / "base")
        base = tmp_path / "base"
        shutil.rmtree(base / "run" / "versions")
        shutil.rmtree(base / "run" / "ledger")
    kills, differences = kill_loop(base, tmp_path, *COMMANDS[command])
    assert differences == [] and kills >= (20 if command == "takedown" else 1)


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_takedown_of_many_kinds_of_files_killed_at_any_change(tmp_path: Path) -> None:
    run = draw_run(tmp_path / "base" / "run", ["1", "10", "talk"], True)
    (run.report / "index.html").write_text("clip of <b>1</b>")
    (run.root / ".clips.unsorted.parquet").write_text("left by a killed command")
    with Ledger(run.ledger).open("cut", FINGERPRINT) as log:  # a run that was killed before it merged
        for video in ("1", "10"):
            log.append((clip_of(video), "y"), Outcome(clip_of(video), "failed"))
    kills, differences = kill_loop(tmp_path / "base", tmp_path, "takedown", "--run", "{}/run", "--", "1")
    assert differences == [] and kills >= 20


def test_reselect_stopped_at_any_change_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = SelectConfig(min_seconds=2.0), draw_run(tmp_path / "whole", ["a"])
    shutil.rmtree(whole.root / "ledger")
    base = tmp_path / "base"
    shutil.copytree(whole.root, base)
    reselect(config, whole)
    assert {row["decision"] for row in read_clips(whole.clips_parquet)} == {"rejected"}
    change = 0
    while True:
        run = RunFolder(tmp_path / f"run{change}")
        shutil.copytree(base, run.root)
        stopped = stopped_at(change, monkeypatch, lambda run=run: reselect(config, run))  # type: ignore[misc]
        for file in run.root.glob(f".*-{os.getpid()}-*"):  # a killed process is no longer there when the next one looks
            file.rename(file.with_name(file.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-")))
        reselect(config, run)
        assert held(run.root) == held(whole.root)
        if not stopped:
            break
        change += 1
    assert change >= 2
