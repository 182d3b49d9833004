"""What is paid before anything begins: the first answer of a command, the start of a worker, the suite's first test."""

import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import write_clips
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder
from curation.reporting.summary import SOURCES_SCHEMA
from tests.benchmarks.measure import Row, child_seconds, compare_commands
from tests.curation.decide.drawn_rows import draw_rows

ROUNDS = 3
OMNIAVATAR = (sys.executable, "-m", "pipelines.cli.start")
ROOT = Path(__file__).parents[2]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(("verb", "aim"), [("", 1.6), ("generate", 2.2), ("train", 2.2), ("curate", 2.2)])
def test_help(report: Callable[[Row], None], verb: str, aim: float) -> None:
    """Forty commands, drawn by the same libraries as one. With a verb the modules of its options are imported; none of
    them may bring torch, which alone would cost ten times as much."""
    one = "import typer\napp = typer.Typer()\n@app.command()\ndef one(x: int = 1) -> None: ...\napp(['--help'])"
    ours = [*OMNIAVATAR, *filter(None, [verb]), "--help"]
    what = " ".join(["omniavatar", *filter(None, [verb]), "--help"])
    report(compare_commands(what, "typer, one command", ours, python(one), aim, ROUNDS))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 300 scored clips of 60 videos, and the ledger of a stage."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    rows = [row | {"video_id": f"v{number // 5}", "source": "folder"} for number, row in enumerate(draw_rows(300, 1))]
    write_clips(
        run.clips_parquet, [row | {"t_start": 0.0, "t_end": row["duration"], "dup_group": None} for row in rows]
    )
    videos = [{"video_id": f"v{number}", "state": "kept", "clips": 5} for number in range(60)]
    pq.write_table(pa.Table.from_pylist(videos, SOURCES_SCHEMA), run.root / "sources.parquet")
    with Ledger(run.ledger).open("sync", "f") as log:
        for number in range(300):
            log.append((f"c{number}", "i"), Outcome(f"c{number}", "kept"))
        log.compact()
    (run.root / "sources").mkdir()
    (run.root / "sources" / "a.mp4").touch()  # a forecast looks at names and sizes
    return run.root


@pytest.mark.parametrize("verb", ["status", "query", "yield", "plan"])
def test_a_question(report: Callable[[Row], None], run: Path, verb: str) -> None:
    """The peer is the least that answers one: the libraries of a command line and one SELECT over the clips.

    A command reads its recipe, checks what it finds and asks several questions: twice the least is allowed, which keeps
    it below the 1.5 s of CONTRIBUTING.md on any machine where the peer takes 0.7 s.
    """
    more = {
        "status": ["--run", str(run)],
        "query": ["--run", str(run), "SELECT decision, count(*) FROM clips GROUP BY 1"],
        "yield": ["--run", str(run), "--recipe", "demo"],
        "plan": ["--recipe", "demo", "--set", f"sources.path={run}/sources"],
    }
    sql = f"SELECT decision, count(*) FROM '{run}/clips.parquet' GROUP BY 1"
    least = f"import duckdb, pyarrow.parquet, typer, yaml\nprint(duckdb.sql({sql!r}).fetchall())"
    ours = [*OMNIAVATAR, verb, *more[verb]]
    report(compare_commands(f"omniavatar {verb}", "typer and one SELECT of DuckDB", ours, python(least), 2.0, ROUNDS))


def test_a_worker_starts(report: Callable[[Row], None]) -> None:
    """A spawned worker until it has answered; the peer imports the same in a bare process. What may be dearer are the
    pool, its queues and the process that tracks them."""
    ours = """
from common.executors.workers import ProcessWorker
worker = ProcessWorker()
worker.load(None).result()
worker.stop()"""
    peer = """
import subprocess, sys, common.executors.workers
subprocess.run([sys.executable, "-c", "import common.executors.workers"], check=True)"""
    report(compare_commands("a worker process, started", "the same imports", python(ours), python(peer), 1.2, ROUNDS))


def test_the_suite_is_collected(report: Callable[[Row], None]) -> None:
    """What every run of the tests pays, on each core, before its first one; the libraries alone are the peer."""
    libraries = (
        "torch, diffusers, transformers, deepspeed, peft, cv2, av, pytest, duckdb, ray, scipy, matplotlib.pyplot"
    )
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", str(ROOT / "tests")]
    ours, peer = child_seconds(collect), child_seconds(python(f"import {libraries}"))
    report(Row("the suite, collected", "its libraries imported", (ours,), (peer,), 2.0))


def test_a_test_of_the_suite(report: Callable[[Row], None]) -> None:
    """Seconds of a test on average in the last `make test`, by the clock; no row where there was none."""
    record = ROOT / "runs" / "suite.xml"
    if record.exists():
        cases = [float(case.attrib["time"]) for case in ElementTree.parse(record).iter("testcase")]
        what = f"a test of {len(cases)} in the last `make test` (wall)"
        # A suite that is run before each commit has to end in minutes: 3,000 tests on two cores in five.
        report(Row(what, "a fifth of a second", (sum(cases) / len(cases),), (0.2,), 1.0))
