from functools import partial
from pathlib import Path
from typing import Any

from common.executors.flow import Flow, Step, Task, packed
from common.executors.host import Host
from common.executors.retry import RetryPolicy
from common.ledger.store import Outcome, ledger_rows
from tests.common.executors.function_stage import FunctionStage

Row = dict[str, Any]


def look(folder: Path, seen: list[set[str]], row: Row) -> Outcome:
    seen.append(set(ledger_rows(folder)["unit"].to_pylist()))
    return Outcome(row["unit"], "kept")


def test_what_a_worker_noted_outlives_the_hand_out_after_it(tmp_path: Path) -> None:
    """The recording process may be killed before it has the first of two that were in hand."""
    seen: list[set[str]] = []
    stage = FunctionStage("one", "1", {}, {}, lambda: partial(look, tmp_path, seen), ("unit",))
    host = Host(Flow((Step(stage),), keeps_rows=False), RetryPolicy(), ledger=tmp_path)
    host.load(0)
    for names in ("ab", "cd", "ef"):
        tasks = [Task(0, name, name, stage.input_hash({"unit": name}), packed({"unit": name})) for name in names]
        before = host.journal(0)
        assert before is not None
        reader = before.open("rb") if before.exists() else None
        host.run(tasks)
        assert reader is None or len(reader.read().splitlines()) >= 2  # the file that was open is as it was
    assert seen == [set(), {"a"}, {"a", "b"}, {"a", "b", "c"}, {"c", "d"}, {"c", "d", "e"}]
