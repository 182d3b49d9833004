"""What the sentence about a damaged file says is done, and then it works. Checkpoints, shards, lists and status files
are tried beside the code that reads them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import REMEDIES, DamagedFileError, damaged
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.jsonlines import JsonLines
from common.ledger.store import Ledger, Outcome
from common.query import METRICS_SCHEMA, write_database
from common.runs import RunFolder
from eval.reporting.summary import judged_method, read_run_recipe
from eval.scoring.eval_table import read_metrics
from pipelines.dag import Context, Step, run_steps
from tests.common.executors.function_stage import FunctionStage
from training.checkpoint import record_provenance

# A file of a run -> words of the first remedy whose pattern it fits.
FILES = {
    "clips.parquet": "omniavatar curate --force",
    "sources.parquet": "omniavatar curate --force",
    "shards/index.parquet": "merges it again from its parts",
    "shards/constants.safetensors": "delete the folder of the shards",
    "ledger/format.json": "move the ledger folder away",
    "ledger/sync-0123.status.json": "only shows progress",
    "ledger/sync-0123.parquet": "only the units it recorded",
    "videos/manifest.parquet": "omniavatar run --from generate",
    "videos/demo.json": "make the video again",
    "logs/steps/train.json": "run the step of its name again",
    "logs/train.jsonl": "only the log",
    "recipe.yaml": "the next step of the flow",
    "versions.json": "the next step of the flow",
    "run.duckdb": "omniavatar db",
    "report/faults.json": "omniavatar curate --force",
    "report/plan.json": "omniavatar plan",
    "report/card.json": "omniavatar eval card",
    "report/scores.json": "omniavatar eval --force",
    "cache/features/fid/0.npz": "makes it anew",
    "checkpoints/adapter/config.json": "copy the export of another checkpoint",
    "checkpoints/adapters/step-00000004/config.json": "copy the export of another checkpoint",
    "checkpoints/state/origin.json": "without comparing its settings",
    "versions/0123.json": "delete the .json and the .parquet of its name",
    "other.json": "restore it from a copy",
}


@pytest.mark.parametrize("file", FILES)
def test_every_file_has_its_remedy(file: str) -> None:
    for path in (Path("runs/a=b/run [v2]") / file, Path(file)):
        assert FILES[file] in str(damaged(path, "it is empty")), path
    assert str(damaged("runs/a/" + file, "x" * 10_000)).count("x") < 200


def test_every_remedy_is_of_a_file_above() -> None:
    fitting = [next((n for n, (p, _) in enumerate(REMEDIES) if re.search(f"(^|/){p}$", file)), None) for file in FILES]
    assert set(range(len(REMEDIES))) <= set(fitting)


def step_runs(root: Path) -> list[str]:
    done: list[str] = []
    step = Step("x", (), (), ".", lambda context: done.append("x"))
    run_steps(Context(None, RunFolder(root), {}), [step])
    return done


def units_run(root: Path) -> int:
    """How many of three units are run, of which the ledger may hold outcomes."""
    done: list[str] = []

    def work(unit: dict[str, str]) -> Outcome:
        done.append(unit["unit"])
        return Outcome(unit["unit"], "kept")

    stage = FunctionStage("x", "1", {}, {}, lambda: work)
    run_stage(stage, [{"unit": name} for name in "abc"], Ledger(root / "ledger"), ExecutorConfig(workers=1))
    return len(done)


def go_on_with(root: Path) -> None:
    record_provenance(RunFolder(root), {"seed": 0})


def make_metrics(root: Path) -> None:
    (root / "report").mkdir(exist_ok=True)
    pq.write_table(
        pa.table({name: [] for name in METRICS_SCHEMA.names}, METRICS_SCHEMA), root / "report/metrics.parquet"
    )
    (root / "report" / "scores.json").write_text(json.dumps({"methods": {}}))


def record(root: Path) -> None:
    (root / "recipe.yaml").write_text("name: x\n")  # as every step of the flow does


# File -> what writes it, and what reads it. The remedy of each is to delete the file and to let the first run again.
READ: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "run.duckdb": (write_database, write_database),
    "logs/steps/x.json": (step_runs, step_runs),
    "logs/train.jsonl": (
        lambda root: (root / "logs/train.jsonl").write_text('{"step": 1, "loss": 2.0}\n'),
        lambda root: list(JsonLines(root / "logs/train.jsonl").rows()),
    ),
    "recipe.yaml": (record, lambda root: read_run_recipe(RunFolder(root))),
    "checkpoints/state/origin.json": (go_on_with, go_on_with),
    "report/scores.json": (make_metrics, lambda root: judged_method(RunFolder(root))),
    "report/metrics.parquet": (make_metrics, lambda root: read_metrics(RunFolder(root))),
    "ledger/x-*.parquet": (units_run, units_run),
}
OBJECT = ("empty", "half", "garbage", "folder", "list")
DAMAGES = {
    "run.duckdb": ("folder",),  # else it is written anew without being read
    "logs/steps/x.json": OBJECT,
    "logs/train.jsonl": ("folder",),  # lines that cannot be read are passed over
    "recipe.yaml": ("empty", "garbage", "folder", "list"),  # half of it is YAML too
    "checkpoints/state/origin.json": OBJECT,
    "report/scores.json": OBJECT,
    "report/metrics.parquet": ("empty", "half", "garbage", "folder"),
    "ledger/x-*.parquet": ("half",),
}


@pytest.mark.parametrize(("name", "content"), [(name, each) for name, found in DAMAGES.items() for each in found])
def test_a_file_that_is_deleted_as_told_comes_back(tmp_path: Path, name: str, content: str) -> None:
    write, read = READ[name]
    for folder in ("logs", "checkpoints/state"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "checkpoints/state/latest").write_text("step-00000001")
    write(tmp_path)
    (file,) = tmp_path.glob(name)
    whole = file.read_bytes()
    file.unlink()
    if content == "folder":
        file.mkdir()
    else:
        file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "list": b"[1]"}.get(content, b"\xff\xfe{"))
    with pytest.raises(DamagedFileError, match=re.escape(file.name)) as error:
        read(tmp_path)
    assert re.search(r"[;] delete it", str(error.value)) and str(tmp_path) in str(error.value)
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    write(tmp_path)
    read(tmp_path)
    assert (tmp_path / "checkpoints/state/latest").read_text() == "step-00000001"


def test_a_ledger_without_its_format_is_moved_away(tmp_path: Path) -> None:
    assert units_run(tmp_path) == 3 and units_run(tmp_path) == 0
    (tmp_path / "ledger" / "format.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match="move the ledger folder away"):
        units_run(tmp_path)
    (tmp_path / "ledger").rename(tmp_path / "away")
    assert units_run(tmp_path) == 3
