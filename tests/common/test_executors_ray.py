"""The Ray executor against the calling process, on a real local Ray."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.executors import ExecutorConfig, Stage, StageError, run_stage
from common.ledger import Ledger, ledger_rows
from common.runs import DiskFullError
from tests.common.test_executors import HERE, calls, draw_units, make_broken, run, unmeasured

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
    units = [{"unit": f"u{n}", "n": n, "kind": "die" if n == 1 else "keep"} for n in range(5)]
    outcomes = run(tmp_path, units, RAY)
    assert [outcome.state for outcome in outcomes] == ["kept", "failed", "kept", "kept", "kept"]
    assert (outcomes[1].error_class, outcomes[1].attempt) == ("WorkerDied", 3)
    out, err = capfd.readouterr()
    assert out == "" and all(line.startswith("judge: ") for line in err.splitlines())


def test_errors_beyond_a_unit_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="^Stage 'sync' cannot start: The weights of sync_scorer are not at /nowhere"):
        run_stage(Stage("sync", "1", {}, {}, make_broken), [{"unit": "a"}], Ledger(tmp_path / "a"), RAY)
    units: list[dict[str, Any]] = [{"unit": "b", "n": 1, "kind": "disk"}]
    with pytest.raises(DiskFullError, match="^The disk is full"):
        run(tmp_path / "b", units, RAY)
    assert ledger_rows(tmp_path / "b" / "ledger").num_rows == 0
    with pytest.raises(StageError, match="no room for one worker"):
        run(tmp_path / "c", [{"unit": "c", "n": 1}], ExecutorConfig("ray", 1, gpus_per_worker=1.0))
