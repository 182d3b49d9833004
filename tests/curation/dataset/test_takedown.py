"""A video withdrawn from a curated run: what is left is what a run without it would have made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.ledger.store import ledger_rows
from common.query import connect, materialise
from common.runs import RunFolder, read_json
from common.tracks import TRACKS_FILE
from curation.config import CurationConfig, SelectConfig, SourcesConfig
from curation.dataset.takedown import begin, finish, forget_clips, left_outside, part_taken_down, still_named, tombstone
from curation.job import PER_FRAME, curate
from curation.sources.listing import list_sources
from tests.curation.conftest import draw_talk, write_talk

SELECT = SelectConfig(min_side=64, min_face_px=12)
CONFIG = CurationConfig(select=SELECT)
ONE = ExecutorConfig(workers=1)
VIDEO = "a_person.mp4"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A person twice, whose second file is a duplicate, and another one."""
    folder = tmp_path_factory.mktemp("sources")
    for name, seed in (("a_person", 0), ("another_person", 0), ("somebody", 1)):
        write_talk(folder / f"{name}.mp4", draw_talk(seed), crf=22 if name == "another_person" else 18)
    (folder / "a_person.json").write_text('{"caption": "A withdrawn face."}')
    return folder


def make(run: RunFolder, sources: Path, face_pack: Path) -> RunFolder:
    curate(CONFIG, SourcesConfig(str(sources)), {"face_detector": face_pack}, run, ONE)
    return run


@pytest.fixture(scope="module")
def finished(sources: Path, face_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make(RunFolder(tmp_path_factory.mktemp("finished")), sources, face_pack)


@pytest.fixture
def run(finished: RunFolder, tmp_path: Path) -> RunFolder:
    shutil.copytree(finished.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def forget(run: RunFolder) -> dict:
    entry = begin(run, VIDEO)
    counts = forget_clips(SELECT, run, VIDEO, entry)
    finish(run, VIDEO, counts)
    return counts


def everything(run: RunFolder) -> str:
    """All that the files of a run say, tables included, and their names."""
    texts = []
    for file in sorted(run.root.rglob("*")):
        texts.append(file.relative_to(run.root).as_posix())
        if file.suffix == ".parquet":
            texts.append(str(pq.read_table(file).to_pylist()))
        elif file.is_file():
            texts.append(file.read_bytes().decode("latin-1"))
    return "\n".join(texts)


def test_what_is_left_is_what_a_run_without_it_makes(
    run: RunFolder, sources: Path, face_pack: Path, tmp_path: Path
) -> None:
    (clip,) = (row["clip_id"] for row in read_clips(run.clips_parquet) if row["video_id"] == VIDEO)
    materialise(run.root)
    assert clip in everything(run) and "A withdrawn face" in everything(run)
    counts = forget(run)
    # Of the sources, the tracks, and of the files of its scan and its tracks, which then go.
    assert (counts["clip_rows"], counts["table_rows"]) == (1, 4) and counts["ledger_rows"] >= 4
    shutil.copytree(sources, tmp_path / "sources")
    for file in (tmp_path / "sources").glob("a_person.*"):
        file.unlink()
    other = make(RunFolder(tmp_path / "other"), tmp_path / "sources", face_pack)
    assert run.clips_parquet.read_bytes() == other.clips_parquet.read_bytes()
    assert {f.name: f.read_bytes() for f in run.clips.iterdir()} == {
        f.name: f.read_bytes() for f in other.clips.iterdir()
    }
    columns = [name for name in pq.read_schema(run.root / "sources.parquet").names if name != "path"]
    tables = [pq.read_table(each.root / "sources.parquet", columns=columns) for each in (run, other)]
    assert tables[0] == tables[1]
    assert pq.read_table(run.root / TRACKS_FILE) == pq.read_table(other.root / TRACKS_FILE)
    assert {f.name for f in (run.root / PER_FRAME).iterdir()} == {f.name for f in (other.root / PER_FRAME).iterdir()}
    said = everything(run)
    for trace in (VIDEO, "a_person", clip, "A withdrawn face"):
        assert trace not in said.replace("another_person", "")
    assert tombstone(VIDEO) in said


def test_it_never_comes_back(run: RunFolder, sources: Path) -> None:
    forget(run)
    listed = list(list_sources(SourcesConfig(str(sources))))
    going, gone = part_taken_down(run, listed)
    assert [row["unit"] for row in going] == ["another_person.mp4", "somebody.mp4"]
    assert [(row["unit"], row["decision"], row["reasons"]) for row in gone] == [
        (tombstone(VIDEO), "rejected", ["taken_down"])
    ]
    with connect(run.root) as database:
        row = database.execute("SELECT unit, state, reason FROM outcomes WHERE stage = 'takedown'").fetchall()
    assert row == [(tombstone(VIDEO), "rejected", "taken_down")]
    going, gone = part_taken_down(RunFolder(run.root.parent), listed)
    assert (list(going), gone) == (listed, [])


def test_the_copy_of_what_was_withdrawn_is_decided_again(run: RunFolder) -> None:
    before = {row["video_id"]: row for row in read_clips(run.clips_parquet)}
    assert before["another_person.mp4"]["reasons"] == ["duplicate"]
    forget(run)
    after = {row["video_id"]: row for row in read_clips(run.clips_parquet)}
    copy = after["another_person.mp4"]
    assert (copy["decision"], copy["dup_group"]) == ("pending", None)
    assert after["somebody.mp4"] == before["somebody.mp4"]


def test_texts_and_files_that_bear_its_name(run: RunFolder, sources: Path) -> None:
    entry = begin(run, VIDEO)
    (clip,) = entry["clips"]
    for file in (f"videos/reference/{clip}.mp4", f"cache/latents/x/{clip}.safetensors", f"cache/videos/{VIDEO}.part"):
        (run.root / file).parent.mkdir(parents=True, exist_ok=True)
        (run.root / file).write_text("pixels")
    (run.report / "index.html").write_text(f"<video src='{clip}.mp4'>")
    (run.logs / "notes.json").write_text(f'["{VIDEO}"]')
    (run.logs / "other.json").write_text('["another_person.mp4", "not_a_person.mp4"]')
    shutil.copy(run.clips_parquet, run.root / ".clips.unsorted.parquet")  # left by a killed run
    shutil.copy(run.clips_parquet, run.ledger / ".cut-0.tmp.parquet")
    counts = forget_clips(SELECT, run, VIDEO, entry)
    assert not list(run.root.rglob(".*"))
    assert counts["files"] >= 4 and still_named(run, entry) == ["logs/notes.json"]
    assert not (run.report / "index.html").exists() and not list(run.root.rglob(f"{clip}*"))
    assert left_outside(run, entry) == [str(sources / VIDEO)]


def test_an_interrupted_one_knows_what_to_do_and_a_finished_one_nothing_more(run: RunFolder) -> None:
    entry = begin(run, VIDEO)
    forget_clips(SELECT, run, VIDEO, entry)
    journal = run.root / "takedowns" / f"{tombstone(VIDEO)}.json"
    assert begin(run, VIDEO) == entry and entry["clips"]  # though the clip table no longer says so
    finish(run, VIDEO, {"clip_rows": 1})
    assert VIDEO not in journal.read_text() and read_json(journal)["removed"] == {"clip_rows": 1}
    assert begin(run, VIDEO)["clips"] == []
    with pytest.raises(ValueError, match="knows no video 'nobody.mp4'"):
        begin(run, "nobody.mp4")


def test_killed_it_is_completed(run: RunFolder, tmp_path: Path) -> None:
    whole = RunFolder(tmp_path / "whole")
    shutil.copytree(run.root, whole.root)
    forget(whole)
    code = (
        "import os, pathlib, curation.dataset.takedown as takedown\n"
        "takedown.forget_units = lambda *_: os.kill(os.getpid(), 9)\n"
        f"run = takedown.RunFolder(pathlib.Path({str(run.root)!r}))\n"
        f"entry = takedown.begin(run, {VIDEO!r})\n"
        f"takedown.forget_clips(takedown.SelectConfig(min_side=64, min_face_px=12), run, {VIDEO!r}, entry)\n"
    )
    root = Path(__file__).parents[3]
    path = os.pathsep.join((str(root), str(root / "packages")))
    killed = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert killed.returncode == -9
    assert VIDEO in (run.root / "takedowns" / f"{tombstone(VIDEO)}.json").read_text()
    assert not [row for row in read_clips(run.clips_parquet) if row["video_id"] == VIDEO]
    forget(run)
    assert VIDEO not in everything(run).replace("another_person", "")
    assert run.clips_parquet.read_bytes() == whole.clips_parquet.read_bytes()
    assert [row["unit"] for row in ledger_rows(run.ledger).to_pylist()] == [
        row["unit"] for row in ledger_rows(whole.ledger).to_pylist()
    ]
