"""Videos on an S3 server: listed, fetched once, fetched again when lost, and on record when they are gone."""

from pathlib import Path

import pytest

from common.executors.config import ExecutorConfig
from common.executors.flow import Flow
from common.executors.flow_run import run_flow
from common.ledger.store import Ledger, ledger_rows
from curation.config import DownloadConfig, SourcesConfig
from curation.download.fetch import fetch_steps
from curation.download.stored import is_stored
from curation.reporting.plan import listed
from curation.sources.listing import list_sources
from tests.common.object_store import object_store


def test_stored_videos_come_once_and_again_when_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    with object_store() as store:
        store.objects = {"bucket/a.mp4": b"a" * 1000, "bucket/b.mp4": b"b" * 2000}
        lines = [f"{store.url(f'bucket/{name}.mp4')} {name}" for name in ("a", "gone", "b")]
        (tmp_path / "urls.txt").write_text("\n".join(lines))

        def run() -> dict[str, bytes]:
            rows = list(list_sources(SourcesConfig(str(tmp_path / "urls.txt"), "urls")))
            assert all(map(is_stored, rows)) and listed(rows).remote == 0
            flow = Flow(tuple(fetch_steps(DownloadConfig(allow_private_addresses=True), tmp_path / "cache")))
            here = run_flow(flow, rows, Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1), "fetch").rows()
            return {row["unit"]: Path(row["path"]).read_bytes() for _, row in here if "decision" not in row}

        whole = {"a": b"a" * 1000, "b": b"b" * 2000}
        assert run() == run() == whole and len(store.gets) == 2
        for file in (tmp_path / "cache" / ".stored").glob("*.mp4"):
            file.unlink()
        assert run() == run() == whole and len(store.gets) == 4
        for file in (tmp_path / "cache" / ".stored").glob("*.mp4"):
            file.write_bytes(b"torn")
        assert run() == whole
    gone = [row for row in ledger_rows(tmp_path / "ledger").to_pylist() if row["unit"] == "gone"]
    assert [(row["state"], row["reason"]) for row in gone] == [("rejected", "removed")]


def test_what_is_here_or_on_a_site_is_not_stored() -> None:
    urls = ("https://host/a.mp4", "http://host/a.mp4", "", None)
    assert not any(is_stored({"url": url}) for url in urls) and not is_stored({"path": "a.mp4"})
    assert is_stored({"url": "gs://bucket/a.mp4"})
