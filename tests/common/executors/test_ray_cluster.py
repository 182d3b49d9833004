"""The Ray executor against the calling process, on a real local Ray."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.executors.config import ExecutorConfig
from common.executors.flow_run import run_flow
from common.executors.run import run_stage
from common.executors.stage import StageError
from common.ledger.store import Ledger, ledger_rows
from common.runs import DiskFullError
from tests.common.executors.function_stage import FunctionStage
from tests.common.executors.test_flow_run import branching
from tests.common.executors.test_run import (
    HERE,
    PATHS,
    calls,
    draw_units,
    make_broken,
    run,
    unmeasured,
)

RAY = ExecutorConfig("ray", 2)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    yield
    import ray  # not before the executor has asked it to be quiet

    ray.shutdown()


def test_ray_equals_calling_process(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    units = draw_units(3, 40)
    on_ray, here = run(tmp_path / "ray", units, RAY), run(tmp_path / "here", units, HERE)
    assert unmeasured(on_ray) == unmeasured(here)
    assert sorted(calls(tmp_path / "ray")) == sorted(calls(tmp_path / "here"))
    assert run(tmp_path / "ray", units, RAY) == on_ray  # from the ledger
    out, err = capfd.readouterr()
    assert out == "" and all(line.startswith("judge: ") for line in err.splitlines())


def test_death_of_an_actor_is_the_failure_of_its_unit_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Killed, or stopped as Ray stops workers, by a signal of which it makes a SystemExit: no attempt of its own."""
    ends = {1: "die", 3: "stopped"}
    units = [{"unit": f"u{n}", "n": n, "kind": ends.get(n, "keep")} for n in range(5)]
    outcomes = run(tmp_path, units, replace(RAY, retry_crashes=1))
    assert [outcome.state for outcome in outcomes] == ["kept", "failed", "kept", "failed", "kept"]
    assert [(outcomes[n].error_class, outcomes[n].attempt) for n in ends] == [("Quarantined", 2)] * 2
    times = Counter(calls(tmp_path))
    assert [times[unit] for unit in ("u0", "u2", "u4")] == [1, 1, 1] and min(times["u1"], times["u3"]) >= 2
    out, err = capfd.readouterr()
    assert out == "" and all(line.startswith("judge: ") for line in err.splitlines())


def test_errors_beyond_a_unit_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="^Stage 'sync' cannot start: The weights of sync_scorer are not at /nowhere"):
        run_stage(FunctionStage("sync", "1", {}, {}, make_broken), [{"unit": "a"}], Ledger(tmp_path / "a"), RAY)
    units: list[dict[str, Any]] = [{"unit": "b", "n": 1, "kind": "disk"}]
    with pytest.raises(DiskFullError, match="^The disk is full"):
        run(tmp_path / "b", units, RAY)
    assert ledger_rows(tmp_path / "b" / "ledger").num_rows == 0
    with pytest.raises(StageError, match="no room for one worker"):
        run(tmp_path / "c", [{"unit": "c", "n": 1}], ExecutorConfig("ray", 1, gpus_per_worker=1.0), pool="gpu")


def test_a_flow_on_ray_equals_one_in_the_calling_process(tmp_path: Path) -> None:
    """Two pools, of which the cluster has no resources for one, and lanes, which reserve no core."""
    listed: list[dict[str, Any]] = [{"unit": f"s{n}", "children": n % 4} for n in range(12)]
    ways = {}
    for name, executor in (("here", HERE), ("ray", replace(RAY, workers=0, cpus_per_worker=0.5))):
        rows = run_flow(branching(tmp_path / name), listed, Ledger(tmp_path / name / "ledger"), executor, "flow")
        ways[name] = list(rows.rows())
    assert ways["here"] == ways["ray"] and len(ways["ray"]) == 12 + sum(n % 4 for n in range(12))
    assert sorted(calls(tmp_path / "here")) == sorted(calls(tmp_path / "ray"))


ONE_CPU = """
import sys
from dataclasses import replace
from pathlib import Path
import ray
from common.executors.dispatch import Dispatcher
from common.executors.run import ExecutorConfig, Ledger, StageError, run_stage
from tests.common.executors.test_flow_run import go, sources
from tests.common.executors.test_run import fetching, run
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    offered = {"num_cpus": 1, "num_gpus": 1, "resources": {"lane:a": 1}}
    ray.init(address="local", include_dashboard=False, log_to_driver=False, **offered)
    units = [{"unit": f"u{n}", "n": n, "sleep": 0.1} for n in range(40)]
    if sys.argv[2] == "room":
        config = ExecutorConfig("ray", 2)
        assert len(run(folder, units[:3], config)) == 3
        assert len(run_stage(fetching(folder, "a", "b"), units[:4], Ledger(folder / "ledger"), config)) == 4
        assert ray.available_resources().get("lane:a", 1.0) == 1.0
        # What needs the GPU does not wait for the one core, which what goes before it has.
        assert len(list(go(folder / "flow", sources(9), ExecutorConfig("ray", 0, gpus_per_worker=1.0)).rows())) == 25
        # One worker more than there is room for waits, so that an autoscaler sees what is wanted, and only one.
        added, add = [], Dispatcher.add
        Dispatcher.add = lambda self, slot: (added.append(slot), add(self, slot))
        go(folder / "long", sources(12, 0.4), ExecutorConfig("ray", 0))
        assert len(added) == 1
    try:
        run(folder, units, ExecutorConfig("ray", 2))
    except StageError as error:
        print(error)
"""


@pytest.mark.soak
def test_one_core_suffices_and_a_killed_ray_is_an_error_that_a_rerun_resumes_from(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ONE_CPU)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "room"]
    driver = subprocess.Popen(command, env=PATHS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "calls").exists() or len(calls(tmp_path)) < 18:
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.1)
    ours = psutil.Process(driver.pid).children(recursive=True)
    for process in ours:
        if process.name() == "raylet" or "Host" in process.name():
            process.kill()
    out, _ = driver.communicate(timeout=120)
    assert "no node left during stage 'judge'" in out and driver.returncode == 0
    rows = ledger_rows(tmp_path / "ledger", "judge").to_pylist()
    assert {row["error_class"] for row in rows} <= {"", "WorkerDied"}  # nobody is quarantined for it
    assert not psutil.wait_procs(ours, timeout=30)[1]
    done, before = sum(row["state"] == "kept" for row in rows), len(calls(tmp_path))
    outcomes = run(tmp_path, [{"unit": f"u{n}", "n": n, "sleep": 0.1} for n in range(40)], HERE)
    assert {outcome.state for outcome in outcomes} == {"kept"} and 4 <= done < 40
    assert len(calls(tmp_path)) - before == 40 - done
