"""The whole job on a folder of planted faults: right reasons, nothing lost to kill -9, nothing done twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.ledger.store import ledger_rows
from common.query import connect
from common.runs import RunFolder
from curation.config import CurationConfig, SelectConfig, SourcesConfig, SpeakerConfig, SyncConfig
from curation.decide.reselect import reselect
from curation.job import curate
from curation.reporting.summary import CurationSummary, summarise
from tests.curation.conftest import Talk, draw_talk, write_talk

SELECT = SelectConfig(min_sync_c=0.3, min_side=64, min_face_px=12)
CONFIG = CurationConfig(sync=SyncConfig(min_correction_c=0.3), speaker=SpeakerConfig(min_sync_c=0.3), select=SELECT)
ONE = ExecutorConfig(workers=1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source of each kind, named after what is planted."""
    folder = tmp_path_factory.mktemp("sources")
    talks = {name: draw_talk(seed) for seed, name in enumerate(("a_clean", "b_clean", "dumb", "frozen", "page", "cut"))}
    talks["copy"] = talks["a_clean"]
    talks["late"] = draw_talk(20, shift=5)
    talks["mute"] = Talk(talks["dumb"].frames, None, talks["dumb"].loudness)  # type: ignore[arg-type]
    talks["dumb"] = Talk(talks["dumb"].frames, np.zeros_like(talks["dumb"].audio), talks["dumb"].loudness)
    talks["frozen"] = Talk(talks["frozen"].frames[:1].repeat(80, 0), talks["frozen"].audio, talks["frozen"].loudness)
    talks["short"] = draw_talk(23, 1.6)
    one, other = draw_talk(21), draw_talk(22)
    talks["pair"] = Talk(np.concatenate([one.frames, other.frames], axis=2), one.audio, one.loudness)
    both = (np.concatenate(parts) for parts in zip(astuple(one), astuple(draw_talk(24)), strict=True))
    talks["two_shots"] = Talk(*both)
    for name, talk in talks.items():
        write_talk(folder / f"{name}.mp4", talk, crf=22 if name == "copy" else 18)
    (folder / "page.mp4").write_text("<html>This video is gone.</html>" * 20)
    (folder / "cut.mp4").write_bytes((folder / "cut.mp4").read_bytes()[:4000])
    (folder / "a_clean.json").write_text('{"caption": "A white square speaks."}')
    return folder


@pytest.fixture(scope="module")
def models(face_pack: Path, syncnet_file: Path) -> dict[str, Path | None]:
    return {"face_detector": face_pack, "sync_scorer": syncnet_file, "quality_scorer": None, "vae": None}


@pytest.fixture(scope="module")
def finished(
    sources: Path, models: dict, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, CurationSummary]:
    """An uninterrupted run; tests that change it work on a copy."""
    run = RunFolder(tmp_path_factory.mktemp("finished"))
    return run, curate(CONFIG, SourcesConfig(str(sources)), models, run, ONE)


@pytest.fixture
def copied(finished: tuple[RunFolder, CurationSummary], tmp_path: Path) -> RunFolder:
    shutil.copytree(finished[0].root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def contents(run: RunFolder) -> dict[str, bytes]:
    files = [run.clips_parquet, run.root / "sources.parquet", *sorted(run.clips.glob("*"))]
    return {file.name: file.read_bytes() for file in files}


def test_every_fault_is_found_for_its_reason(finished: tuple[RunFolder, CurationSummary]) -> None:
    run, summary = finished
    found: dict[str, list] = {}
    for row in sorted(read_clips(run.clips_parquet), key=lambda row: row["t_start"]):
        found.setdefault(row["video_id"].removesuffix(".mp4"), []).append((row["decision"], row["reasons"]))
    waits = ("pending", ["needs quality_scorer"])
    assert found == {
        "a_clean": [waits],
        "b_clean": [waits],
        "copy": [("rejected", ["duplicate"])],
        "dumb": [("rejected", ["no_speech"])],
        "frozen": [("rejected", ["still_picture", "low_sync"])],
        "late": [waits],
        "pair": [("rejected", ["several_faces"])],
        "short": [("rejected", ["too_short"])],
        "two_shots": [waits, waits],
    }
    assert summary.refused_sources == {"no_audio": 1, "not_a_video": 1, "truncated": 1}
    assert (summary.sources, summary.clips, summary.kept, summary.pending) == (12, 10, 0, 5)
    assert summary.pending_roles == {"quality_scorer": 5}


def test_fields_of_a_clip_are_filled_in(finished: tuple[RunFolder, CurationSummary]) -> None:
    rows = {row["video_id"]: row for row in read_clips(finished[0].clips_parquet)}
    late, clean = rows["late.mp4"], rows["a_clean.mp4"]
    assert (late["sync_offset"], late["sync_offset_applied"], clean["sync_offset_applied"]) == (-5, -5, 0)
    assert (clean["caption"], clean["caption_model"]) == ("A white square speaks.", "sidecar")
    assert clean["dup_group"] == clean["clip_id"] == rows["copy.mp4"]["dup_group"]
    assert (clean["fps_src"], clean["width"], clean["codec"], clean["face_px"]) == (25.0, 64, "h264", 16.0)
    assert set(clean["stage_versions"]) == {
        "probe", "scan", "tracks", "cut", "speech", "lips", "sync", "text",
    }  # fmt: skip
    assert (finished[0].root / clean["bytes_uri"]).is_file()
    assert rows["short.mp4"]["bytes_uri"] is None


def test_the_run_can_be_asked(finished: tuple[RunFolder, CurationSummary]) -> None:
    with connect(finished[0].root) as database:
        refused = database.sql("SELECT video_id, reason FROM sources WHERE state = 'rejected' ORDER BY 1").fetchall()
        assert refused == [("cut.mp4", "truncated"), ("mute.mp4", "no_audio"), ("page.mp4", "not_a_video")]
        assert database.sql("SELECT count(*) FROM clips WHERE decision = 'pending'").fetchall() == [(5,)]


def test_a_second_run_does_nothing_again(copied: RunFolder, sources: Path, models: dict) -> None:
    before, rows = contents(copied), ledger_rows(copied.ledger).to_pylist()
    curate(CONFIG, SourcesConfig(str(sources)), models, copied, ONE)
    assert contents(copied) == before
    assert ledger_rows(copied.ledger).to_pylist() == rows


def test_killed_anywhere_and_run_again_gives_the_same_bytes(
    finished: tuple[RunFolder, CurationSummary], sources: Path, models: dict, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "killed")
    paths = {role: str(path) for role, path in models.items() if path}
    code = (
        "import sys; sys.path[:0] = ['.', 'packages']\n"
        "from pathlib import Path\n"
        "from tests.curation.test_job import CONFIG, ONE, RunFolder, SourcesConfig, curate\n"
        f"models = {{role: Path(path) for role, path in {paths!r}.items()}}\n"
        f"curate(CONFIG, SourcesConfig({str(sources)!r}), models, RunFolder(Path({str(run.root)!r})), ONE)\n"
    )
    root = Path(__file__).parents[2]
    for rows in (20, 45):  # while decoding and while scoring
        child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
        while child.poll() is None and _rows(run) < rows:
            time.sleep(0.02)
        assert child.poll() is None, "the run ended before it was killed"
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    curate(CONFIG, SourcesConfig(str(sources)), models, run, ONE)
    assert contents(run) == contents(finished[0])


def _rows(run: RunFolder) -> int:
    """About how many rows the ledger holds, read without disturbing its writer."""
    lines = sum(file.read_bytes().count(b"\n") for file in run.ledger.glob("*.jsonl"))
    return lines + 10 * len(list(run.ledger.glob("*.parquet")))


def test_other_thresholds_need_no_new_run(copied: RunFolder) -> None:
    rows = ledger_rows(copied.ledger).num_rows
    summary = reselect(replace(SELECT, max_faces=2, min_speech_pct=0, min_seconds=1.0), copied)
    assert summary.refused == {"low_sync": 2, "duplicate": 1, "still_picture": 1}
    assert summary == summarise(copied)
    assert ledger_rows(copied.ledger).num_rows == rows


def test_another_sync_setting_scores_again_and_nothing_else(copied: RunFolder, sources: Path, models: dict) -> None:
    before = {row["stage"]: row["recorded"] for row in ledger_rows(copied.ledger).to_pylist()}
    unmoved = replace(CONFIG, sync=SyncConfig(min_correction_c=100.0))
    curate(unmoved, SourcesConfig(str(sources)), models, copied, ONE)
    rows = {row["video_id"]: row for row in read_clips(copied.clips_parquet)}
    assert (rows["late.mp4"]["sync_offset"], rows["late.mp4"]["sync_offset_applied"]) == (-5, 0)
    assert rows["late.mp4"]["reasons"] == ["low_sync"]
    changed = {row["stage"] for row in ledger_rows(copied.ledger).to_pylist() if row["recorded"] > max(before.values())}
    assert changed == {"sync"}


@pytest.mark.parametrize(
    ("pattern", "stage"),
    [("clips/*.mp4", "cut"), ("per_frame/*.scan.parquet", "scan"), ("per_frame/*.tracks.parquet", "tracks")],
)
def test_a_lost_product_is_made_again_by_its_stage_alone(
    copied: RunFolder, sources: Path, models: dict, pattern: str, stage: str
) -> None:
    before, rows = contents(copied), {row["recorded"] for row in ledger_rows(copied.ledger).to_pylist()}
    products = sorted(copied.root.glob(pattern))
    bytes_before = products[1].read_bytes()
    products[1].unlink()
    curate(CONFIG, SourcesConfig(str(sources)), models, copied, ONE)
    assert contents(copied) == before and products[1].read_bytes() == bytes_before
    again = [row["stage"] for row in ledger_rows(copied.ledger).to_pylist() if row["recorded"] not in rows]
    assert again == [stage]


def test_lost_and_changed_clip_files_come_back(copied: RunFolder, sources: Path, models: dict) -> None:
    before = contents(copied)
    rows = {row["video_id"]: row["clip_id"] for row in read_clips(copied.clips_parquet)}
    (copied.clips / f"{rows['late.mp4']}.mp4").unlink()
    (copied.clips / f"{rows['a_clean.mp4']}.mp4").write_bytes(b"rubbish")
    (copied.clips / "0123456789abcdef.mp4").write_bytes(b"of an older cut")
    curate(CONFIG, SourcesConfig(str(sources)), models, copied, ONE)
    assert contents(copied) == before


def test_without_weights_everything_else_is_done(sources: Path, face_pack: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    summary = curate(CONFIG, SourcesConfig(str(sources)), {"face_detector": face_pack}, run, ONE)
    assert summary.pending_roles == {"quality_scorer": 5, "sync_scorer": 5}
    assert any("set models.sync_scorer" in line for line in summary.lines())
    assert summary.refused["no_speech"] == 1 and "low_sync" not in summary.refused
