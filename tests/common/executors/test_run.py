import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage, stream_stage
from common.executors.stage import StageError
from common.executors.status import read_status
from common.ledger.store import Ledger, Outcome, ledger_rows
from common.runs import DiskFullError, RunFolder
from tests.common.executors.function_stage import FunctionStage

HERE, POOL = ExecutorConfig(workers=1), ExecutorConfig(workers=2)
MEASURED = {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0, "host": ""}
PATHS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
Row = dict[str, Any]


def judge(log: Path, factor: float, row: Row) -> Outcome:
    """A stage with every kind of outcome; `log` receives one line per call."""
    with open(log, "a") as file:
        file.write(row["unit"] + "\n")
    time.sleep(row.get("sleep", 0.0))
    kind = row.get("kind", "keep")
    if kind == "raise":
        raise KeyError(f"no {row['unit']}")
    if kind == "exit":
        sys.exit("a library gives up")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGTERM)
    if kind == "disk":
        raise OSError(errno.ENOSPC, "No space left on device")
    if kind == "wrong":
        return Outcome("another unit", "kept")
    if kind == "pending":
        return Outcome(row["unit"], "pending", "no_weights")
    if kind == "reject":
        return Outcome(row["unit"], "rejected", "off_sync", outputs={"sync_c": np.float32(row["n"])})
    return Outcome(row["unit"], "kept", outputs={"score": row["n"] * factor, "pair": (1, float("nan"))})


def make_judge(log: Path, factor: float) -> Callable[[Row], Outcome]:
    return partial(judge, log, factor)


def make_broken() -> Callable[[Row], Outcome]:
    raise FileNotFoundError("The weights of sync_scorer are not at /nowhere; set models.sync_scorer.")


def make_deadly() -> Callable[[Row], Outcome]:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def judging(folder: Path, factor: float = 2.0, reads: tuple[str, ...] = (), **options: Any) -> FunctionStage:
    folder.mkdir(parents=True, exist_ok=True)
    make = partial(make_judge, folder / "calls", factor)
    return FunctionStage("judge", "1", {"factor": factor}, {}, make, reads, **options)


def draw_units(seed: int, count: int, kinds: tuple[str, ...] = ("keep", "reject", "raise", "exit")) -> list[Row]:
    chance = random.Random(seed)
    return [{"unit": f"u{n}", "n": chance.random(), "kind": chance.choice(kinds)} for n in range(count)]


def run(folder: Path, units: list[Row], executor: ExecutorConfig, **stage: Any) -> list[Outcome]:
    return run_stage(judging(folder, **stage), units, Ledger(folder / "ledger"), executor)


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().split()


def unmeasured(outcomes: list[Outcome]) -> list[Outcome]:
    return [replace(outcome, **MEASURED) for outcome in outcomes]


def test_outcomes_are_complete_in_order_and_durable(tmp_path: Path) -> None:
    kinds = ("keep", "reject", "raise", "wrong")
    units = [{"unit": f"u{n}", "n": n, "kind": kind} for n, kind in enumerate(kinds)]
    kept, rejected, failed, wrong = run(tmp_path, units, HERE)
    assert unmeasured([kept, rejected]) == [
        Outcome("u0", "kept", outputs={"score": 0.0, "pair": [1, None]}),
        Outcome("u1", "rejected", "off_sync", outputs={"sync_c": 1.0}),
    ]
    assert (failed.state, failed.error_class, failed.attempt) == ("failed", "KeyError", 3)
    assert failed.message.startswith("'no u2' [test_run.py:")
    assert wrong.error_class == "TypeError" and "another unit" in wrong.message
    assert calls(tmp_path) == ["u0", "u1", "u2", "u3", "u2", "u3", "u2", "u3"]
    rows = {row["unit"]: row for row in ledger_rows(tmp_path / "ledger").to_pylist()}
    assert json.loads(rows["u0"]["outputs"]) == kept.outputs and len(rows) == 4


def test_second_run_touches_no_settled_unit(tmp_path: Path) -> None:
    units = draw_units(0, 20)
    first = run(tmp_path, units, HERE)
    before = calls(tmp_path)
    assert run(tmp_path, units, HERE) == first and calls(tmp_path) == before
    shuffled = units[::-1]
    assert run(tmp_path, shuffled, HERE) == first[::-1] and calls(tmp_path) == before
    more = [*units, {"unit": "new", "n": 1.0}]
    assert run(tmp_path, more, HERE)[:-1] == first and calls(tmp_path) == [*before, "new"]


def test_only_units_that_depend_on_a_change_run_again(tmp_path: Path) -> None:
    units: list[Row] = [{"unit": "a", "n": 1, "sha": "x"}, {"unit": "b", "n": 2, "sha": "x"}]
    run(tmp_path, units, HERE, reads=("n",))
    units[0]["sha"] = "y"  # a field the stage does not read
    run(tmp_path, units, HERE, reads=("n",))
    assert calls(tmp_path) == ["a", "b"]
    units[1]["n"] = 3
    run(tmp_path, units, HERE, reads=("n",))
    assert calls(tmp_path) == ["a", "b", "b"]
    assert run(tmp_path, units, HERE, reads=("n",), factor=5.0)[1].outputs["score"] == 15.0


def test_pending_units_run_again(tmp_path: Path) -> None:
    units: list[Row] = [{"unit": "a", "n": 1, "kind": "pending"}]
    assert [run(tmp_path, units, HERE)[0].reason for _ in range(3)] == ["no_weights"] * 3
    assert len(calls(tmp_path)) == 3 and ledger_rows(tmp_path / "ledger").num_rows == 1


@pytest.mark.parametrize("seed", range(2))
def test_pool_equals_calling_process(tmp_path: Path, seed: int) -> None:
    units = draw_units(seed, 25)
    here, pool = run(tmp_path / "here", units, HERE), run(tmp_path / "pool", units, POOL)
    assert unmeasured(here) == unmeasured(pool)
    assert sorted(calls(tmp_path / "here")) == sorted(calls(tmp_path / "pool"))


def test_death_of_a_worker_is_the_failure_of_its_unit_alone(tmp_path: Path) -> None:
    units = [{"unit": f"u{n}", "n": n, "kind": "die" if n == 2 else "keep"} for n in range(8)]
    outcomes = run(tmp_path, units, POOL)
    assert [outcome.state for outcome in outcomes] == ["kept"] * 2 + ["failed"] + ["kept"] * 5
    assert (outcomes[2].error_class, outcomes[2].attempt) == ("Quarantined", 3)
    assert sorted(calls(tmp_path)) == sorted([*(f"u{n}" for n in range(8)), "u2", "u2"])


def test_crashing_units_are_quarantined_until_retry(tmp_path: Path) -> None:
    units: list[Row] = [{"unit": "bad", "n": 1, "kind": "die"}, {"unit": "good", "n": 1}]
    once = replace(POOL, retry_crashes=1)
    first = run(tmp_path, units, once)
    assert [(o.state, o.error_class, o.attempt) for o in first] == [("failed", "Quarantined", 2), ("kept", "", 1)]
    assert run(tmp_path, units, once) == first and calls(tmp_path).count("bad") == 2
    again = run(tmp_path, units, replace(once, retry=True))
    assert (again[0].error_class, again[0].attempt) == ("Quarantined", 4)
    assert calls(tmp_path).count("bad") == 4 and calls(tmp_path).count("good") == 1


def test_retry_gives_failed_units_a_fresh_set_of_attempts(tmp_path: Path) -> None:
    units: list[Row] = [{"unit": "a", "n": 1, "kind": "raise"}, {"unit": "b", "n": 1, "kind": "reject"}]
    assert [run(tmp_path, units, HERE)[0].attempt for _ in range(2)] == [3, 3]
    assert run(tmp_path, units, replace(HERE, retry=True, retry_failed=0))[0].attempt == 4
    assert calls(tmp_path).count("a") == 4 and calls(tmp_path).count("b") == 1


def test_a_unit_over_its_time_is_stopped_with_its_worker(tmp_path: Path) -> None:
    units = [{"unit": f"u{n}", "n": n, "sleep": 60.0 if n == 1 else 0.0} for n in range(4)]
    stage = judging(tmp_path, timeout_seconds=0.5)
    started = time.monotonic()
    outcomes = run_stage(stage, units, Ledger(tmp_path / "ledger"), replace(HERE, retry_failed=0))
    assert [outcome.state for outcome in outcomes] == ["kept", "failed", "kept", "kept"]
    assert outcomes[1].error_class == "TimedOut" and "0.5 s" in outcomes[1].message
    assert time.monotonic() - started < 30
    assert sorted(calls(tmp_path)) == ["u0", "u1", "u2", "u3"]


def test_the_longest_units_begin_first_and_the_order_of_results_stays(tmp_path: Path) -> None:
    units = [{"unit": f"u{n}", "n": n} for n in (2, 9, 4)]
    outcomes = run_stage(judging(tmp_path, cost="n"), units, Ledger(tmp_path / "ledger"), HERE)
    assert [outcome.unit for outcome in outcomes] == ["u2", "u9", "u4"] and calls(tmp_path) == ["u9", "u4", "u2"]


def fetch(log: Path, lane: str, row: Row) -> Outcome:
    """Lane "slow" is told to pause by its first unit, and stays away for ever when a second one comes too soon."""
    told = log.with_name(f"{lane} paused")
    with open(log, "a") as file:
        file.write(f"{lane} {row['unit']}\n")
    if row.get("kind") == "pending":
        return Outcome(row["unit"], "pending", "no_format")
    if lane.startswith("slow") and not told.exists():
        told.write_text(str(time.time()))
        return Outcome(row["unit"], "pending", "bot_check", outputs={"pause_seconds": 1.5})
    if lane.startswith("slow"):
        assert time.time() - float(told.read_text()) >= 1.5
    time.sleep(row.get("sleep", 0.0))
    return Outcome(row["unit"], "kept", outputs={"lane": lane})


def make_fetch(log: Path, lane: str) -> Callable[[Row], Outcome]:
    return partial(fetch, log, lane)


def fetching(folder: Path, *lanes: str) -> FunctionStage:
    return FunctionStage("fetch", "1", {}, {}, partial(make_fetch, folder / "calls"), lanes=lanes)


def test_a_lane_that_is_told_to_pause_rests_and_its_unit_goes_to_another(tmp_path: Path) -> None:
    units = [{"unit": f"u{n}", "sleep": 0.05} for n in range(8)]
    outcomes = run_stage(fetching(tmp_path, "slow", "quick"), units, Ledger(tmp_path / "ledger"), HERE)
    assert [(outcome.state, outcome.attempt) for outcome in outcomes] == [("kept", 1)] * 8
    lines = (tmp_path / "calls").read_text().splitlines()
    told = [line for line in lines if line.startswith("slow")][0].split()[1]
    assert told in [line.split()[1] for line in lines[-2:]]  # it went to the end of the queue
    assert len(lines) == 9


def test_when_all_lanes_rest_the_first_to_wake_goes_on(tmp_path: Path) -> None:
    units = [{"unit": "a"}, {"unit": "b", "kind": "pending"}, {"unit": "c"}]
    started = time.monotonic()
    outcomes = run_stage(fetching(tmp_path, "slow"), units, Ledger(tmp_path / "ledger"), HERE)
    assert time.monotonic() - started >= 1.5
    assert [(o.state, o.reason) for o in outcomes] == [("kept", ""), ("pending", "no_format"), ("kept", "")]
    assert (tmp_path / "calls").read_text().split()[1::2] == ["a", "b", "c", "a"]
    both = run_stage(fetching(tmp_path, "slow1", "slow2"), [{"unit": "d"}], Ledger(tmp_path / "ledger2"), HERE)
    assert [(o.state, o.attempt) for o in both] == [("kept", 1)]


def test_a_pause_is_durable(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    with pytest.raises(StageError, match="every lane needs its own name"):
        run_stage(fetching(tmp_path, "a", "a"), [{"unit": "a"}], ledger, HERE)
    stage = fetching(tmp_path, "slow")
    with ledger.open(stage.name, stage.fingerprint) as log:
        log.append(("a", stage.input_hash({"unit": "a"})), Outcome("a", "pending", outputs={"pause_seconds": 3600.0}))
    started = time.monotonic()
    assert run_stage(stage, [{"unit": "a"}], ledger, HERE)[0].state == "kept"
    assert time.monotonic() - started < 60  # the pause was of a worker that is gone


@pytest.mark.parametrize("executor", [HERE, POOL])
def test_full_disk_ends_the_run_and_is_no_unit_s_fault(tmp_path: Path, executor: ExecutorConfig) -> None:
    units: list[Row] = [{"unit": "a", "n": 1}, {"unit": "b", "n": 1, "kind": "disk"}]
    with pytest.raises(DiskFullError, match="Free space there and run the same command again"):
        run(tmp_path, units, executor)
    assert {row["unit"] for row in ledger_rows(tmp_path / "ledger").to_pylist()} <= {"a"}
    units[1]["kind"] = "keep"
    assert [outcome.state for outcome in run(tmp_path, units, executor)] == ["kept", "kept"]


@pytest.mark.parametrize("executor", [HERE, POOL])
def test_a_stage_that_does_not_load_ends_the_run_with_its_reason(tmp_path: Path, executor: ExecutorConfig) -> None:
    stage = FunctionStage("sync", "1", {}, {}, make_broken)
    with pytest.raises(StageError, match="Stage 'sync' cannot start: The weights of sync_scorer are not at /nowhere"):
        run_stage(stage, [{"unit": "a"}], Ledger(tmp_path), executor)
    assert ledger_rows(tmp_path).num_rows == 0


def test_a_stage_that_dies_loading_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="die loading its models"):
        run_stage(FunctionStage("sync", "1", {}, {}, make_deadly), [{"unit": "a"}], Ledger(tmp_path), POOL)


def test_unit_ids_must_be_unique_and_workers_positive(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="got the unit 'a' more than once"):
        run(tmp_path, [{"unit": "a", "n": 1}, {"unit": "a", "n": 2}], HERE)
    with pytest.raises(ValueError, match="workers is -1"):
        ExecutorConfig(workers=-1)


def test_measures_are_of_the_unit(tmp_path: Path) -> None:
    def work(row: Row) -> Outcome:
        if row["unit"] == "big":
            return Outcome(row["unit"], "kept", outputs={"n": int(np.ones(25_000_000).sum())})  # 200 MB
        time.sleep(0.2)
        return Outcome(row["unit"], "kept")

    stage = FunctionStage("measure", "1", {}, {}, lambda: work)
    big, small = run_stage(stage, [{"unit": "big"}, {"unit": "small"}], Ledger(tmp_path), HERE)
    assert small.seconds >= 0.2 > small.cpu_seconds
    assert big.peak_mb > small.peak_mb + 150
    assert big.cpu_seconds > 0 and big.host


def held(row: Row) -> Outcome:
    return Outcome(row["unit"], "kept", outputs={"pid": os.getpid()})


def make_held() -> Callable[[Row], Outcome]:
    return held


def alive() -> list[int]:
    """The workers of this process, the resource tracker excepted."""
    found = psutil.Process().children()
    return [child.pid for child in found if "spawn_main" in " ".join(child.cmdline())]


def test_outcomes_stream_from_a_generator_of_units(tmp_path: Path) -> None:
    units = draw_units(4, 30)
    streamed = stream_stage(judging(tmp_path / "a"), (dict(unit) for unit in units), Ledger(tmp_path / "a/l"), HERE)
    first = next(streamed)
    assert len(set(calls(tmp_path / "a"))) == 30  # all is done before the first is told
    assert unmeasured([first, *streamed]) == unmeasured(run(tmp_path / "b", units, HERE))


def test_a_run_killed_after_its_last_unit_is_ended_by_the_next(tmp_path: Path) -> None:
    """Killed before it merged its rows and said that it had ended."""
    units = draw_units(0, 4, ("keep",))
    run(tmp_path, units, HERE)
    ledger = tmp_path / "ledger"
    (file,), (status,) = ledger.glob("*.parquet"), ledger.glob("*.status.json")
    file.with_suffix(".jsonl").touch()
    status.write_text(status.read_text().replace('"ended"', '"running"'))
    run(tmp_path, units, HERE)
    assert [each.state for each in read_status(RunFolder(tmp_path))] == ["ended"]
    assert not [each for each in ledger.iterdir() if each.suffix == ".jsonl"]


def test_status_of_a_running_and_an_ended_stage(tmp_path: Path) -> None:
    run(tmp_path, draw_units(0, 20, ("keep", "reject")), HERE)
    (status,) = read_status(RunFolder(tmp_path))
    assert (status.stage, status.state, status.total, status.done) == ("judge", "ended", 20, 20)
    with pytest.raises(DiskFullError):
        run(tmp_path, [{"unit": "new", "n": 1, "kind": "disk"}], HERE)
    (status,) = read_status(RunFolder(tmp_path))
    assert (status.state, status.note, status.done) == ("stopped", "DiskFullError", 0)


def test_rows_of_a_run_killed_before_merging_are_merged_by_the_next(tmp_path: Path) -> None:
    units, stage = [{"unit": "a", "n": 1}], judging(tmp_path)
    with Ledger(tmp_path / "ledger").open(stage.name, stage.fingerprint) as log:
        log.append(("a", stage.input_hash(units[0])), Outcome("a", "kept", outputs={"score": 1.0}))
    assert run(tmp_path, units, HERE)[0].outputs == {"score": 1.0}
    assert [file.suffix for file in (tmp_path / "ledger").iterdir() if file.name != "format.json"] == [".parquet"]


SCRIPT = """
import sys
from pathlib import Path
from tests.common.executors.test_run import POOL, run
if __name__ == "__main__":
    run(Path(sys.argv[1]), [{"unit": f"u{n}", "n": n, "sleep": 0.1} for n in range(40)], POOL, reads=("n",))
"""


def start_long_run(folder: Path, begun: int = 10) -> "subprocess.Popen[bytes]":
    """A run of 40 slow units in another process, returned when `begun` of them have begun."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "script.py").write_text(SCRIPT)
    pipe = subprocess.PIPE
    command = [sys.executable, str(folder / "script.py"), str(folder)]
    # A shell that starts the tests in the background would hand down that Ctrl-C is to be ignored.
    process = subprocess.Popen(command, env=PATHS, stderr=pipe, preexec_fn=partial(signal.signal, 2, signal.SIG_DFL))
    while not (folder / "calls").exists() or len(calls(folder)) < begun:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.02)
    return process


def test_kill_9_of_the_run_leaves_no_orphans_and_the_next_run_resumes(tmp_path: Path) -> None:
    process = start_long_run(tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive and len(gone) >= 2
    done = {row["unit"] for row in ledger_rows(tmp_path / "ledger").to_pylist()}
    before = calls(tmp_path)
    assert 5 <= len(done) < 40
    units = [{"unit": f"u{n}", "n": n} for n in range(40)]
    outcomes = run(tmp_path, units, HERE, reads=("n",))
    assert [outcome.state for outcome in outcomes] == ["kept"] * 40
    assert sorted(calls(tmp_path)[len(before) :]) == sorted({unit["unit"] for unit in units} - done)


@pytest.mark.soak
def test_no_finished_unit_runs_again_after_any_kill(tmp_path: Path) -> None:
    """The run dies twice, the second time after one of its workers; what had a row before is not called again."""
    again = []
    for kills in (["run"], ["worker", "run"]):
        finished = {row["unit"] for row in ledger_rows(tmp_path / "ledger").to_pylist() if row["state"] == "kept"}
        before = len(calls(tmp_path)) if (tmp_path / "calls").exists() else 0
        process = start_long_run(tmp_path, before + 6)
        workers = [c for c in psutil.Process(process.pid).children() if "spawn_main" in " ".join(c.cmdline())]
        for victim in kills:
            seen = len(calls(tmp_path))
            (workers[0] if victim == "worker" else process).kill()
            while victim == "worker" and len(calls(tmp_path)) < seen + 4:
                time.sleep(0.02)
        process.wait()
        psutil.wait_procs(workers, timeout=20)
        again += [unit for unit in calls(tmp_path)[before:] if unit in finished]
    outcomes = run(tmp_path, [{"unit": f"u{n}", "n": n} for n in range(40)], POOL, reads=("n",))
    assert [outcome.state for outcome in outcomes] == ["kept"] * 40 and again == []
    # Each kill of the run interrupts a unit on each of two workers at most, that of a worker one.
    assert len(calls(tmp_path)) <= 40 + 2 + 1 + 2 and len(ledger_rows(tmp_path / "ledger")) == 40


def test_ctrl_c_ends_at_once_without_spam(tmp_path: Path) -> None:
    process = start_long_run(tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    text = process.stderr.read().decode()
    assert process.wait(timeout=20) == -signal.SIGINT
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert text.count("Traceback") == 1 and text.strip().endswith("KeyboardInterrupt")  # the caller's own, to catch
    assert ledger_rows(tmp_path / "ledger").num_rows >= 5


def test_only_units_with_a_lost_product_run_again(tmp_path: Path) -> None:
    """The ledger outlives the file: asked by `Stage.product_exists`, for kept units alone, and recorded once more."""
    units = [{"unit": name, "n": 1} for name in "abc"] + [{"unit": "d", "n": 1, "kind": "reject"}]
    lost: set[str] = set()
    stage = judging(
        tmp_path, product_exists=lambda row, outcome: row["unit"] not in lost and outcome.outputs["score"] == 2.0
    )
    first = run_stage(stage, units, Ledger(tmp_path / "ledger"), HERE)
    assert calls(tmp_path) == ["a", "b", "c", "d"]
    lost.add("b")
    again = run_stage(stage, units, Ledger(tmp_path / "ledger"), HERE)
    assert calls(tmp_path) == ["a", "b", "c", "d", "b"]
    assert [replace(each, **MEASURED) for each in again] == [replace(each, **MEASURED) for each in first]
    assert ledger_rows(tmp_path / "ledger").num_rows == 4


def make_buggy() -> Callable[[Row], Outcome]:
    raise KeyError("weights")


@pytest.mark.parametrize("executor", [HERE, POOL])
def test_a_bug_in_load_keeps_its_traceback(tmp_path: Path, executor: ExecutorConfig) -> None:
    """A missing file is a sentence for the user; anything else must say where it came from, across processes too."""
    stage = FunctionStage("judge", "1", {}, {}, make_buggy)
    with pytest.raises(RuntimeError, match="Stage 'judge' cannot start") as caught:
        run_stage(stage, [{"unit": "a"}, {"unit": "b"}], Ledger(tmp_path), executor)
    assert not isinstance(caught.value, StageError)
    assert "in make_buggy" in "".join(caught.value.__notes__)
