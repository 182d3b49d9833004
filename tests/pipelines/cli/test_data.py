"""The commands about curated data, as a user types them."""

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import write_clips
from common.ledger.store import Outcome
from common.runs import RunFolder
from curation.config import SelectConfig
from curation.decide.yields import yield_table
from curation.reporting.summary import SOURCES_SCHEMA
from curation.rows import SourceRow
from curation.stages.scan import ScanStage
from tests.curation.decide.drawn_rows import draw_rows
from tests.curation.frozen import make_run, write_videos
from tests.pipelines.command_line import run_here


def omniavatar(*arguments: object) -> list[str]:
    """The lines a command prints; it must succeed."""
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 clips of 60 videos that were scored."""
    run = RunFolder(tmp_path_factory.mktemp("scored"))
    rows = [row | {"video_id": f"v{number // 5}", "source": "folder"} for number, row in enumerate(draw_rows(300, 1))]
    rows = [row | {"t_start": 0.0, "t_end": row["duration"], "dup_group": None} for row in rows]
    write_clips(run.clips_parquet, rows)
    videos = [{"video_id": f"v{number}", "state": "kept", "clips": 5} for number in range(60)]
    pq.write_table(pa.Table.from_pylist(videos, SOURCES_SCHEMA), run.root / "sources.parquet")
    return run.root


def test_thresholds_are_a_question_and_then_a_decision(scored: Path, tmp_path: Path) -> None:
    picture = tmp_path / "yield.svg"
    lines = omniavatar("yield", "--run", scored, "--preset", "strict", "--grid", "min_sync_c=3,6", "--plot", picture)
    assert lines[-1] == str(picture) and picture.stat().st_size > 1000
    assert any("low_sync" in line for line in lines)
    lines = omniavatar("reselect", "--run", scored, "--preset", "omniavatar")
    kept = yield_table(scored, SelectConfig(), {"min_sync_c": [4.0]}).to_pylist()[0]["clips"]
    assert kept > 20 and any(f" {kept} kept" in line for line in lines)

    omniavatar("split", "--run", scored, "--count", 20, "--out", tmp_path / "test.tsv")
    omniavatar("reselect", "--run", scored, "--preset", "omniavatar", "--test-list", tmp_path / "test.tsv")
    rows = pq.read_table(scored / "clips.parquet", columns=["video_id", "split"]).to_pylist()
    tested = {row["video_id"] for row in rows if row["split"] == "test"}
    assert sum(row["split"] == "test" for row in rows) == 20
    assert not tested & {row["video_id"] for row in rows if row["split"] == "train"}


def test_a_version_is_frozen_rebuilt_and_loses_a_video(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    videos = write_videos(tmp_path / "videos")
    run = make_run(tmp_path / "run", videos)
    frozen = Path(omniavatar("freeze", "--run", run.root)[-1])
    assert frozen.exists()
    lines = omniavatar("rebuild", frozen, "--run", tmp_path / "again", "--videos", videos)
    assert any("3 clips of 2 videos: same bytes" in line for line in lines)

    lines = omniavatar("takedown", "--run", run.root, "--plan", "--", "one")
    assert lines[0].startswith("to remove of 'one': 3 clip rows") and (run.root / "versions" / frozen.name).exists()
    assert not (run.root / "takedowns").exists()
    for unknown in ("on", "one.mp4"):
        refused = run_here("takedown", "--run", run.root, "--", unknown)
        assert refused.returncode == 1 and f"knows no video '{unknown}'" in refused.stderr
    lines = omniavatar("takedown", "--run", run.root, "--", "one")
    assert lines[0].startswith("to remove of 'one': 3 clip rows")
    assert any("2 clips became tombstones" in line for line in lines)
    assert not any("one" in str(file) for file in run.root.rglob("*"))
    # The list keeps its name with tombstones in it; one frozen now has another, and the same clips.
    again = Path(omniavatar("freeze", "--run", run.root)[-1])
    assert again != frozen
    assert [line.split()[1] for line in omniavatar("diff", frozen, again)[:3]] == ["0", "0", "0"]


def test_another_machine_goes_on_from_the_mirror(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    source = f"sources.path={write_videos(tmp_path / 'videos')}"
    mirror = f"mirror={(tmp_path / 'mirror').as_uri()}"
    common = ("curate", "--recipe", "folder", "--set", source, "--set", mirror, "--set", "executor.workers=1")
    omniavatar(*common, "--run", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "lost")
    omniavatar(*common, "--run", tmp_path / "there")
    for name in ("clips.parquet", "sources.parquet"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "lost" / name).read_bytes()
    ledgers = [sorted((tmp_path / run / "ledger").glob("*.parquet")) for run in ("lost", "there")]
    assert [file.read_bytes() for file in ledgers[0]] == [
        file.read_bytes() for file in ledgers[1]
    ]  # nothing done twice


def test_what_a_stopped_run_has_done_is_in_its_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos").mkdir()
    source = f"sources.path={write_videos(tmp_path / 'videos')}"
    mirror = f"mirror={(tmp_path / 'mirror').as_uri()}"
    common = ("curate", "--recipe", "folder", "--set", source, "--set", mirror, "--set", "executor.workers=1")
    scan, scanned = ScanStage.__call__, list[str]()

    def stopped(stage: ScanStage, row: SourceRow) -> Outcome:
        scanned.append(row["unit"])
        os.kill(os.getpid(), signal.SIGTERM)
        return scan(stage, row)

    monkeypatch.setattr(ScanStage, "__call__", stopped)
    for here in ("first", "second", "third"):  # machines, each with one video more
        assert run_here(*common, "--run", tmp_path / here).returncode == (0 if here == "third" else 75)
        if here == "second":
            monkeypatch.setattr(ScanStage, "__call__", scan)
    assert len(scanned) == len(set(scanned)) == 2
