import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.ledger import LEDGER_SCHEMA, Ledger, Outcome, StageLog, ledger_rows

PATHS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def open_log(folder: Path, fingerprint: str = "f1") -> StageLog:
    return Ledger(folder).open("sync", fingerprint)


def test_every_field_survives_lines_and_compaction(tmp_path: Path) -> None:
    outcome = Outcome(
        "clip-1", "rejected", "off_sync", "said\n\"so\" 'ü' 𝄞", {"sync_c": 1.5, "list": [1, None], "deep": {"a": "b"}}
    )
    outcome2 = Outcome("clip-2", "failed", "", "m", {}, 1.5, 2.5, 0.5, 99.0, "host-a", 3, "MediaError")
    with open_log(tmp_path) as log:
        log.append(("clip-1", "in1"), outcome)
        log.append(("clip-2", "in2"), outcome2)
    expected = {("clip-1", "in1"): outcome, ("clip-2", "in2"): outcome2}
    assert open_log(tmp_path).done() == expected
    open_log(tmp_path).compact()
    assert [file.suffix for file in tmp_path.iterdir()] == [".parquet"]
    assert open_log(tmp_path).done() == expected
    table = ledger_rows(tmp_path)
    assert table.schema == LEDGER_SCHEMA
    row = table.to_pylist()[1]
    assert (row["stage"], row["fingerprint"], row["input_hash"]) == ("sync", "f1", "in2")
    assert (row["gpu_seconds"], row["peak_mb"], row["recorded"].year >= 2024) == (0.5, 99.0, True)


def test_last_attempt_wins_and_is_counted_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for attempt, state in ((1, "failed"), (2, "failed"), (3, "kept")):
            log.append(("a", "in"), Outcome("a", state, attempt=attempt))
        log.append(("a", "other input"), Outcome("a", "rejected"))
        log.append(("p", "in"), Outcome("p", "pending"))
        log.append(("p", "in"), Outcome("p", "kept"))  # the same attempt, later
    states = {key: outcome.state for key, outcome in open_log(tmp_path).done().items()}
    assert states == {("a", "in"): "kept", ("a", "other input"): "rejected", ("p", "in"): "kept"}
    assert ledger_rows(tmp_path).num_rows == 3


def test_stages_and_fingerprints_are_apart(tmp_path: Path) -> None:
    for stage, fingerprint in (("sync", "f1"), ("sync", "f2"), ("sync_audio", "f1")):
        with Ledger(tmp_path).open(stage, fingerprint) as log:
            log.append(("a", "in"), Outcome("a", "kept", reason=fingerprint))
            log.compact()
    assert open_log(tmp_path, "f2").done()[("a", "in")].reason == "f2"
    assert open_log(tmp_path, "f3").done() == {}
    assert ledger_rows(tmp_path).num_rows == 3
    assert set(ledger_rows(tmp_path, "sync")["stage"].to_pylist()) == {"sync"}


def test_a_kill_between_compaction_and_removal_of_the_lines_doubles_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "kept"))
        log.append(("b", "in"), Outcome("b", "kept"))
    lines = (tmp_path / "sync-f1.jsonl").read_bytes()
    open_log(tmp_path).compact()
    (tmp_path / "sync-f1.jsonl").write_bytes(lines)
    assert ledger_rows(tmp_path).num_rows == 2 == len(open_log(tmp_path).done())
    open_log(tmp_path).compact()
    assert pq.read_table(tmp_path / "sync-f1.parquet").num_rows == 2


def test_torn_last_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "kept"))
        log.append(("b", "in"), Outcome("b", "kept"))
    path = tmp_path / "sync-f1.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert set(open_log(tmp_path).done()) == {("a", "in")}
    with open_log(tmp_path) as log:
        log.append(("b", "in"), Outcome("b", "rejected"))
        log.compact()
    assert {row["unit"]: row["state"] for row in ledger_rows(tmp_path).to_pylist()} == {"a": "kept", "b": "rejected"}


WRITER = """
import itertools, sys
from common.ledger import Ledger, Outcome
for start in itertools.count():
    with Ledger(sys.argv[1]).open("sync", "f1") as log:
        done = len(log.done())
        for n in range(done, done + 150):
            log.append((f"u{n}", "in"), Outcome(f"u{n}", "kept", outputs={"n": n}))
            print(n, flush=True)
        log.compact()
"""


def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Rows are acknowledged on a pipe after append; whoever was acknowledged is there, once, after the kill."""
    chance, acknowledged = random.Random(0), -1
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=PATHS, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(chance.randint(100, 300)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        rows = ledger_rows(tmp_path).to_pylist()
        numbers = sorted(json.loads(row["outputs"])["n"] for row in rows)
        assert numbers == list(range(len(rows))) and len(rows) in (acknowledged + 1, acknowledged + 2)


def test_text_that_parquet_cannot_hold_keeps_its_row(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "failed", message="file \udcff and \0"))
        log.compact()
    assert open_log(tmp_path).done()[("a", "in")].message == "file \\udcff and "


def test_second_run_and_bad_name_are_clear(tmp_path: Path) -> None:
    first, second = open_log(tmp_path), open_log(tmp_path)
    first.lock()
    with pytest.raises(RuntimeError, match="another run"):
        second.append(("a", "in"), Outcome("a", "kept"))
    with pytest.raises(ValueError, match="Stage name 'a/b'"):
        Ledger(tmp_path).open("a/b", "f")


def test_absent_ledger_is_empty(tmp_path: Path) -> None:
    table = ledger_rows(tmp_path / "none")
    assert table.num_rows == 0 and table.schema == LEDGER_SCHEMA
