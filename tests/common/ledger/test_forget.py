"""Rows leave merged, sealed and appended files alike, and no others do."""

from pathlib import Path

import pytest

from common.ledger.forget import forget_units, named_by
from common.ledger.store import Ledger, Outcome, ledger_rows

STAGES = ("probe", "cut")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Two stages: units a.mp4 to d.mp4 merged; then, by a killed run, aa.mp4, a.mp42 and a row that names a.mp4."""
    ledger = Ledger(tmp_path / "ledger")
    for stage in STAGES:
        with ledger.open(stage, "0" * 16) as log:
            for name in "abcd":
                outputs = {"files": {"seen": f"{name}-{stage}.npz"}, "n": 1}
                log.append((f"{name}.mp4", "x"), Outcome(f"{name}.mp4", "kept", outputs=outputs))
            log.compact()
    with ledger.open("cut", "0" * 16) as log:
        log.append(("aa.mp4", "x"), Outcome("aa.mp4", "kept"))
        log.append(("a.mp42", "x"), Outcome("a.mp42", "kept"))
        log.append(("batch", "x"), Outcome("batch", "failed", message="the clip of 'a.mp4' is torn"))
    return ledger


def units(ledger: Ledger) -> list[tuple[str, str]]:
    return [(row["stage"], row["unit"]) for row in ledger_rows(ledger.folder).to_pylist()]


def test_only_rows_of_the_unit_go(ledger: Ledger) -> None:
    before = units(ledger)
    assert named_by(ledger.folder, {"a.mp4"}) == ["a-cut.npz", "a-probe.npz"]
    assert forget_units(ledger.folder, {"a.mp4", "nobody"}) == 3
    gone = {("probe", "a.mp4"), ("cut", "a.mp4"), ("cut", "batch")}
    assert units(ledger) == [unit for unit in before if unit not in gone]
    assert all(b"a.mp4'" not in file.read_bytes() for file in ledger.folder.iterdir())
    assert forget_units(ledger.folder, {"a.mp4", "nobody"}) == 0
    with ledger.open("cut", "0" * 16) as log:  # the stage goes on
        log.append(("e.mp4", "x"), Outcome("e.mp4", "kept"))
        log.compact()
    assert ("cut", "e.mp4") in units(ledger) and len(units(ledger)) == len(before) - 2


def test_open_rows_stay_when_no_unit_is_removed(ledger: Ledger) -> None:
    before = {file.name: file.read_bytes() for file in ledger.folder.iterdir() if file.is_file()}
    assert forget_units(ledger.folder, {"z.mp4"}) == 0
    assert {file.name: file.read_bytes() for file in ledger.folder.iterdir() if file.is_file()} == before


def test_a_running_stage_is_refused(ledger: Ledger) -> None:
    with ledger.open("cut", "0" * 16) as log:
        log.lock()
        with pytest.raises(RuntimeError, match="is being written by another run"):
            forget_units(ledger.folder, {"a.mp4"})
