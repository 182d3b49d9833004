"""A run folder that commit 35d976c wrote goes on: what it has recorded is adopted, and no network is loaded again.

tests/assets/formats/curation-1 was made by that commit: two drawn sources, curated with the small world's judges, whose
hashes were those of the files in its `weights`.
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.ledger.store import Ledger, ledger_rows
from common.runs import FormatVersionError, RunFolder
from common.tracks import TRACKS_FILE, stream_tracks
from curation.config import CurationConfig, SelectConfig, SourcesConfig
from curation.job import curate
from curation.stages.quality import QualityStage
from curation.stages.scan import ScanStage
from curation.stages.sync import SyncStage

OLD = Path(__file__).parents[2] / "assets" / "formats" / "curation-1"
CONFIG = CurationConfig(select=SelectConfig(min_side=64, min_face_px=16))
ONE = ExecutorConfig(workers=1)
# What depends on fingerprints, and so on how settings are written down.
NEW = ("stage_versions", "run_id")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    shutil.copytree(OLD / "run", tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(stage: object) -> None:
        raise AssertionError(f"{type(stage).__name__} has nothing to do")

    for stage in (ScanStage, SyncStage, QualityStage):
        monkeypatch.setattr(stage, "load", load)


def go_on(run: RunFolder) -> None:
    models = {file.name: file for file in (OLD / "weights").iterdir()}
    curate(CONFIG, SourcesConfig(str(OLD / "sources")), models, run, ONE)


def test_an_old_run_goes_on_with_nothing_computed_again(run: RunFolder, no_network: None) -> None:
    before = pq.read_table(run.clips_parquet)
    go_on(run)
    after = pq.read_table(run.clips_parquet)
    for name in before.column_names:
        assert name in NEW or before[name].equals(after[name]), name
    tracks = list(stream_tracks(run.root / TRACKS_FILE))
    assert [row["clip_id"] for row in tracks] == after["clip_id"].to_pylist()
    assert all(row["is_speaker"] and row["lip_motion"] for row in tracks)
    # SyncNet's scores of every face were not recorded then.
    assert [row["sync_c"] for row in tracks] == [None, None]
    rows = ledger_rows(run.ledger).num_rows
    go_on(run)
    assert ledger_rows(run.ledger).num_rows == rows and Ledger(run.ledger).format_version() == 2


def test_other_settings_are_not_what_was_recorded(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another interval between faces is another scan: adopting the old one would be wrong."""
    loads: list[str] = []
    monkeypatch.setattr(ScanStage, "load", lambda stage: loads.append(stage.name) or stage.hold(detector=None))
    monkeypatch.setattr(SyncStage, "load", lambda stage: loads.append(stage.name))
    monkeypatch.setattr(QualityStage, "load", lambda stage: loads.append(stage.name))
    changed = json.loads(json.dumps({"face_interval": 0.4}))
    config = CurationConfig(scan=type(CONFIG.scan)(**changed), select=CONFIG.select)
    models = {file.name: file for file in (OLD / "weights").iterdir()}
    curate(config, SourcesConfig(str(OLD / "sources")), models, run, ExecutorConfig(workers=1, retry_failed=0))
    assert loads == ["scan"]  # which has no detector here, so that nothing comes after it
    assert read_clips(run.clips_parquet) == []


def test_tables_and_ledgers_of_newer_code_are_refused_with_what_to_do(run: RunFolder) -> None:
    newer = pq.read_table(run.clips_parquet).replace_schema_metadata({"format": "clips 9"})
    pq.write_table(newer, run.clips_parquet)
    with pytest.raises(FormatVersionError, match="format 9, this code reads 1 to 1; update omniavatar-stack"):
        read_clips(run.clips_parquet)
    (run.ledger / "format.json").write_text('{"version": 9}')
    with pytest.raises(FormatVersionError, match="move the ledger folder away"):
        go_on(run)
