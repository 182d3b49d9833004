"""Flows: every row by itself through all stages, equal results however often it was killed, and nothing done twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import BusyError
from common.executors.config import ExecutorConfig
from common.executors.exchange import FILES
from common.executors.flow import Flow, Step
from common.executors.flow_run import FlowRows, run_flow
from common.executors.retry import collect_unsettled
from common.executors.stage import StageError
from common.executors.status import read_status
from common.ledger.store import FLOW, Ledger, Outcome, ledger_rows
from common.runs import RunFolder
from tests.common.executors.function_stage import FunctionStage
from tests.common.executors.test_run import PATHS, calls
from tests.common.object_store import object_store

HERE, POOL = ExecutorConfig(workers=1), ExecutorConfig(workers=2)
Row = dict[str, Any]


def split(log: Path, row: Row) -> Outcome:
    with open(log, "a", errors="backslashreplace") as file:
        file.write(f"split:{row['unit']}\n")
    time.sleep(row.get("sleep", 0.0))
    if row.get("kind") == "raise":
        raise KeyError("no such frame")
    if row.get("kind") == "pending":
        return Outcome(row["unit"], "pending", "geo_blocked")
    if row.get("kind") == "reject":
        return Outcome(row["unit"], "rejected", "no_audio")
    (log.parent / f"{row['unit']}.scan").write_text("x")
    names = [f"{row['unit']}-{number}" for number in range(row["children"])]
    sleep = row.get("sleep", 0.0)
    return Outcome(
        row["unit"], "kept", outputs={"rows": [{"unit": n, "n": i, "sleep": sleep} for i, n in enumerate(names)]}
    )


def judge(log: Path, stage: str, row: Row) -> Outcome:
    with open(log, "a", errors="backslashreplace") as file:
        file.write(f"{stage}:{row['unit']}\n")
    time.sleep(row.get("sleep", 0.0))
    if row.get("kind") == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if row["n"] == 2 and stage == "judge":
        return Outcome(row["unit"], "rejected", "music", outputs={"score": 0.0})
    return Outcome(row["unit"], "kept", outputs={stage: len(row["unit"]) / 7})


def make_split(log: Path) -> Any:
    return partial(split, log)


def make_judge(log: Path, stage: str, lane: str = "") -> Any:
    return partial(judge, log, stage)


def make_broken() -> Any:
    raise FileNotFoundError("The weights of quality_scorer are not at /nowhere; set models.quality_scorer.")


class SplitStage(FunctionStage):
    def __init__(self, folder: Path) -> None:
        super().__init__("split", "1", {}, {}, partial(make_split, folder / "calls"), ("unit", "children", "kind"))
        self.folder = folder

    def products(self, row: Row, outcome: Outcome) -> dict[Path, int | None]:
        return {self.folder / f"{row['unit']}.scan": 1}

    def product_exists(self, row: Row, outcome: Outcome) -> bool:
        return (self.folder / f"{row['unit']}.scan").exists()


def children(row: Row) -> list[Row]:
    return [child | {"of": row["unit"]} for child in row["rows"]]


def is_first(row: Row) -> bool:
    return bool(row["n"] == 0)


def is_fourth(row: Row) -> bool:
    return bool(row["n"] == 3)


def branching(folder: Path, judge_version: str = "1", broken: bool = False) -> Flow:
    """Listed rows are split; first children pass by the judge, fourth ones leave before it; then a lane and a net."""
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(make_judge, folder / "calls")
    last = make_broken if broken else partial(make, "net")
    return Flow(
        (
            Step(SplitStage(folder), then=children),
            Step(FunctionStage("judge", judge_version, {}, {}, partial(make, "judge"), ("unit",)), is_first, is_fourth),
            Step(FunctionStage("ask", "1", {}, {}, partial(make, "ask"), ("unit",), lanes=("web",))),
            Step(FunctionStage("net", "1", {}, {}, last, ("unit",), pool="gpu")),
        ),
        settings={"a": 1},
    )


def go(folder: Path, listed: list[Row], executor: ExecutorConfig = HERE, **options: Any) -> FlowRows:
    return run_flow(branching(folder, **options), listed, Ledger(folder / "ledger"), executor, "flow")


def sources(count: int, sleep: float = 0.0) -> list[Row]:
    return [{"unit": f"s{n:03d}", "children": n % 5, "sleep": sleep} for n in range(count)]


def test_rows_pass_by_leave_and_branch(tmp_path: Path) -> None:
    listed = [*sources(5), {"unit": "bad", "children": 1, "kind": "reject"}]
    rows = {row["unit"]: row for _, row in go(tmp_path, listed).rows()}
    assert len(rows) == 6 + 10 and rows["bad"]["reasons"] == ["no_audio"] and rows["bad"]["decision"] == "rejected"
    assert {"ask", "net"} <= rows["s004-0"].keys() and "judge" not in rows["s004-0"]
    assert {"judge", "ask", "net", "of"} <= rows["s004-1"].keys()
    assert rows["s004-2"]["decision"] == "rejected" and rows["s004-2"]["score"] == 0.0 and "net" not in rows["s004-2"]
    assert "judge" not in rows["s004-3"] and "decision" not in rows["s004-3"]
    assert "rows" not in rows["s004"] and rows["s004"]["children"] == 4
    states = {status.stage: (status.total, status.done) for status in read_status(RunFolder(tmp_path))}
    assert states == {"split": (6, 6), "judge": (5, 5), "ask": (7, 7), "net": (7, 7)}


@pytest.mark.parametrize("executor", [HERE, POOL])
def test_a_second_run_does_nothing_and_a_change_only_what_depends_on_it(
    tmp_path: Path, executor: ExecutorConfig
) -> None:
    first = list(go(tmp_path, sources(9), executor).rows())
    before = calls(tmp_path)
    assert list(go(tmp_path, sources(9), executor).rows()) == first and calls(tmp_path) == before
    more = [*reversed(sources(9)), {"unit": "new", "children": 2}]
    assert len(list(go(tmp_path, more, executor).rows())) == len(first) + 3
    assert {line.split(":")[1].split("-")[0] for line in calls(tmp_path)[len(before) :]} == {"new"}
    fewer = list(go(tmp_path, sources(4), executor).rows())
    assert fewer == [row for row in first if row[0] < "s004"]
    before = calls(tmp_path)
    assert list(go(tmp_path, sources(9), executor, judge_version="2").rows()) == first
    assert {line.split(":")[0] for line in calls(tmp_path)[len(before) :]} == {"judge"}


def test_names_that_are_no_utf_8_are_found_again(tmp_path: Path) -> None:
    listed = [{"unit": "caf\udce9", "children": 2}]
    rows = go(tmp_path, listed)
    assert [row["unit"] for _, row in rows.rows("unit = listed")] == ["caf\udce9"]
    assert len(list(rows.rows("unit <> listed"))) == 2
    before = calls(tmp_path)
    go(tmp_path, listed, judge_version="2")
    assert "split" not in {line.split(":")[0] for line in calls(tmp_path)[len(before) :]}


def test_a_lost_product_is_made_again_and_a_moved_run_knows_its_own(tmp_path: Path) -> None:
    first = list(go(tmp_path / "a", sources(6)).rows())
    (tmp_path / "a").rename(tmp_path / "b")
    assert list(go(tmp_path / "b", sources(6)).rows()) == first
    before = calls(tmp_path / "b")
    (tmp_path / "b" / "s003.scan").unlink()
    assert list(go(tmp_path / "b", sources(6)).rows()) == first
    assert calls(tmp_path / "b")[len(before) :] == ["split:s003"]


def test_what_has_no_final_outcome_runs_again_and_is_reported(tmp_path: Path) -> None:
    listed = [{"unit": "a", "children": 2}, {"unit": "b", "kind": "pending"}, {"unit": "c", "kind": "raise"}]
    for tries in (1, 2):
        with collect_unsettled() as stages:
            rows = {row["unit"]: row for _, row in go(tmp_path, listed).rows()}
        assert calls(tmp_path).count("split:b") == tries and calls(tmp_path).count("split:c") == 3
        (of_split,) = [stage for stage in stages if stage.units]
        assert (of_split.stage, of_split.pending, of_split.failed, of_split.attempts) == ("split", 1, 1, 3)
        assert rows["c"]["reasons"] == ["failed split"] and rows["c"]["error_class"] == "KeyError"
    listed[1] = {"unit": "b", "children": 1}
    assert len(list(go(tmp_path, listed).rows())) == 3 + 3


def test_a_stage_that_cannot_start_stops_only_what_needs_it(tmp_path: Path) -> None:
    for executor in (HERE, POOL):
        folder = tmp_path / str(executor.workers)
        with pytest.raises(StageError, match="Stage 'net' cannot start: The weights of quality_scorer"):
            go(folder, sources(9), executor, broken=True)
        done = Counter(line.split(":")[0] for line in calls(folder))
        assert (done["split"], done["ask"]) == (9, 12)
        rows = list(go(folder, sources(9), executor).rows())
        assert len(rows) == 9 + 16 and Counter(line.split(":")[0] for line in calls(folder))["ask"] == 12


def test_two_runs_of_a_flow_do_not_meet_and_units_differ(tmp_path: Path) -> None:
    go(tmp_path, sources(2))
    flow = branching(tmp_path)
    with Ledger(tmp_path / "ledger" / FLOW).open("results", flow.fingerprint) as log:
        log.lock()
        with pytest.raises(BusyError, match="is being written by another run"):
            go(tmp_path, sources(3))
    with pytest.raises(StageError, match="the unit 's000' 2 times"):
        go(tmp_path, sources(1) * 2)


SCRIPT = """
import sys
from pathlib import Path
from common.executors.config import ExecutorConfig
from common.executors.exchange import FILES
from common.process.signals import Stopped, stop_signals
from tests.common.executors.test_flow_run import go, sources
if __name__ == "__main__":
    with stop_signals():
        try:
            go(Path(sys.argv[1]), sources(30, 0.03), ExecutorConfig(workers=2))
        except Stopped:
            sys.exit(75)
"""


def start(folder: Path, begun: int) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(folder / "script.py"), str(folder)], env=PATHS, stderr=subprocess.DEVNULL
    )
    while not (folder / "calls").exists() or len(calls(folder)) < begun:
        assert process.poll() is None
        time.sleep(0.01)
    return process


def test_kill_9_repeats_only_what_was_in_hand_and_sigterm_nothing(tmp_path: Path) -> None:
    """Killed, stopped, and run to the end: the rows of an undisturbed run."""
    whole = list(go(tmp_path / "whole", sources(30, 0.03), POOL).rows())
    folder = tmp_path / "killed"
    process = start(folder, 20)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]
    recorded = ledger_rows(folder / "ledger").num_rows
    assert recorded >= len(calls(folder)) - 3 - 1  # two workers and a lane had one unit in work each
    process = start(folder, len(calls(folder)) + 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 75
    assert sum(count - 1 for count in Counter(calls(folder)).values()) <= 4
    again = Counter(calls(folder))
    assert list(go(folder, sources(30, 0.03), POOL).rows()) == whole
    # What was in hand when it was told to stop was finished first.
    assert Counter(calls(folder)) - again == Counter(calls(tmp_path / "whole")) - again


def test_files_are_exchanged_by_workers_without_a_shared_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another machine made comes by way of the object storage, also to the one that goes on with its ledger."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    whole = [row for _, row in go(tmp_path / "whole", sources(6)).rows()]
    with object_store() as store:
        executor = replace(HERE, exchange=store.url("bucket/mirror"))
        rows = [dict(row) for _, row in go(tmp_path / "a", sources(6), executor).rows()]
        files = {name: digest for row in rows for name, digest in row.pop(FILES, {}).items()}
        assert rows == whole and sorted(files) == [f"s{n:03d}.scan" for n in range(6)]
        assert len(store.objects) == 1  # of equal content
        before = calls(tmp_path / "a")
        for file in (tmp_path / "a").glob("*.scan"):
            file.unlink()
        assert len(list(go(tmp_path / "a", sources(6), executor).rows())) == len(whole)
        assert calls(tmp_path / "a") == before and len(list((tmp_path / "a").glob("*.scan"))) == 6
        (tmp_path / "a" / "s001.scan").write_text("another")
        list(go(tmp_path / "a", sources(7), executor).rows())
        assert (tmp_path / "a" / "s001.scan").read_text() == "x"


@pytest.mark.soak
def test_any_kill_of_anything_gives_the_same_rows(tmp_path: Path) -> None:
    whole = list(go(tmp_path / "whole", sources(30, 0.03), POOL).rows())
    chance = random.Random(5)
    for number in range(10):
        folder = tmp_path / str(number)
        process = start(folder, chance.randint(1, 80))
        workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        victim = chance.choice([process, *workers])
        victim.kill()
        if victim is process:
            process.wait()
            psutil.wait_procs(workers, timeout=20)
        else:
            assert process.wait(timeout=120) == 0
        assert list(go(folder, sources(30, 0.03), POOL).rows()) == whole
        assert len(calls(folder)) <= len(calls(tmp_path / "whole")) + 4
