"""Rows leave merged, sealed and appended files alike, and no others do."""

from pathlib import Path

import pytest

from common.ledger.forget import count_units, forget_units, ledger_stages, messages_with, output_texts, stage_units
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


def everywhere(*units: str) -> dict[str, set[str]]:
    return dict.fromkeys(STAGES, set(units))


def test_only_rows_of_the_unit_go(ledger: Ledger) -> None:
    before = units(ledger)
    assert ledger_stages(ledger.folder) == ["cut", "probe"] and "a.mp42" in stage_units(ledger.folder, "cut")
    assert output_texts(ledger.folder, "cut", {"a.mp4"}, "$.files.*") == {"a-cut.npz": False}
    assert count_units(ledger.folder, everywhere("a.mp4", "nobody")) == 2
    assert forget_units(ledger.folder, everywhere("a.mp4", "nobody")) == 2
    gone = {("probe", "a.mp4"), ("cut", "a.mp4")}
    assert units(ledger) == [unit for unit in before if unit not in gone]
    # The row of another unit, whose message names it, is not its own.
    assert messages_with(ledger.folder, {"a.mp4"}) == [("cut", "the clip of 'a.mp4' is torn")]
    assert forget_units(ledger.folder, everywhere("a.mp4", "nobody")) == 0
    with ledger.open("cut", "0" * 16) as log:  # the stage goes on
        log.append(("e.mp4", "x"), Outcome("e.mp4", "kept"))
        log.compact()
    assert ("cut", "e.mp4") in units(ledger) and len(units(ledger)) == len(before) - 1


HOSTILE = (
    "1",
    "a",
    ".",
    "it's",
    '"quoted"',
    "100%",
    "_",
    "[ab].mp4",
    "a b",
    " ",
    "../x",
    "-x",
    "u\u0308.mp4",
    "\u00fc.mp4",
)


def test_units_are_found_to_the_letter(tmp_path: Path) -> None:
    ledger, names = Ledger(tmp_path), sorted({*HOSTILE, "11", "1.mp4", "unit 1", "a.v2", "A"}, key=str.encode)
    with ledger.open("cut", "0" * 16) as log:
        for name in names:
            shared = {"files": {"own": f"{name}.npz", "all": "all.npz"}}
            log.append((name, "x"), Outcome(name, "failed", message="1 a % [ab].mp4", outputs=shared))
        log.compact()
    for unit in HOSTILE[::2]:
        assert output_texts(tmp_path, "cut", {unit}, "$.files.*") == {f"{unit}.npz": False, "all.npz": True}
        assert forget_units(tmp_path, {"cut": {unit}, "probe": set(names)}) == 1
        names.remove(unit)
        assert [name for _, name in units(ledger)] == names
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_stage_is_left_alone_when_another_has_such_a_unit(ledger: Ledger) -> None:
    before = units(ledger)
    assert forget_units(ledger.folder, {"probe": {"b.mp4"}, "cut": set()}) == 1
    assert units(ledger) == [unit for unit in before if unit != ("probe", "b.mp4")]


def test_an_empty_file_of_a_killed_takedown_goes(ledger: Ledger) -> None:
    empty = ledger.folder / f"probe-{'0' * 16}.jsonl"
    empty.touch()
    assert forget_units(ledger.folder, {"cut": {"nobody"}}) == 0 and empty.exists()
    assert forget_units(ledger.folder, {"probe": set()}) == 0 and not empty.exists()


def test_open_rows_stay_when_no_unit_is_removed(ledger: Ledger) -> None:
    before = {file.name: file.read_bytes() for file in ledger.folder.iterdir() if file.is_file()}
    assert forget_units(ledger.folder, everywhere("z.mp4")) == 0
    assert {file.name: file.read_bytes() for file in ledger.folder.iterdir() if file.is_file()} == before


def test_a_running_stage_is_refused(ledger: Ledger) -> None:
    with ledger.open("cut", "0" * 16) as log:
        log.lock()
        with pytest.raises(RuntimeError, match="is being written by another run"):
            forget_units(ledger.folder, everywhere("a.mp4"))
