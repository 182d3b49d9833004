"""Two commands on one run folder at once, and a reader beside them: the second is told, nothing is torn or lost."""

import multiprocessing
import os
import random
import shutil
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from common.clips import read_clips
from common.query import run_query

ROOT = Path(__file__).parents[2]
TINY = ("--recipe", str(ROOT / "tests" / "tiny.yaml"), "--set", "executor.workers=1")
TRIES = 20
HELD = "is being written by omniavatar"
CURATE, TRAIN = ("curate", *TINY, "--force"), ("train", *TINY, "--force", "--set", "train.steps=1", "--set", "ranks=1")
COUNT = "select (select count(*) from clips) as clips, (select count(*) from outcomes where stage = 'cut') as cut"


# Forks of one process that has imported everything: a command begins at once, so that races are close.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pipelines.cli.main", "curation.job", "curation.reporting.report", "pipelines.takedown", "pipelines.drawn"]
    + ["eval.reporting.report", "latents.job", "training.launch.on_ray", "common.query", "curation.decide.reselect"]
)


def start(run: Path, log: Path, *arguments: str) -> ForkServerProcess:
    command = ["omniavatar", *arguments[:1], "--run", str(run), *arguments[1:]]
    process = SERVER.Process(target=_command, args=(command, log))
    process.start()
    return process


def _command(words: list[str], log: Path) -> None:
    from pipelines.cli.main import main

    sys.argv = words
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run up to its shards."""
    run = tmp_path_factory.mktemp("races") / "run"
    done = start(run, run.with_suffix(".log"), "run", *TINY, "--to", "latents")
    done.join()
    assert done.exitcode == 0
    return run


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("first", "second"),
    [(CURATE, CURATE), (CURATE, ("reselect", *TINY)), (TRAIN, ("takedown", *TINY, "--", "source_0001.mp4"))],
    ids=["curate-curate", "curate-reselect", "train-takedown"],
)
def test_two_writers_and_a_reader(
    first: tuple[str, ...], second: tuple[str, ...], finished: Path, tmp_path: Path
) -> None:
    delays, refused, answers = random.Random(0), 0, 0
    rows = len(read_clips(finished / "clips.parquet"))
    gone = sum(row["video_id"] == "source_0001.mp4" for row in read_clips(finished / "clips.parquet"))
    for number in range(TRIES):
        run = tmp_path / str(number)
        shutil.copytree(finished, run)
        pair = [first, second] if number % 2 else [second, first]
        logs = [tmp_path / "first.log", tmp_path / "second.log"]
        writers = [start(run, logs[0], *pair[0])]
        time.sleep(delays.uniform(0.0, 2.0))
        writers.append(start(run, logs[1], *pair[1]))
        while any(writer.is_alive() for writer in writers):
            counts = run_query(run, COUNT).to_pylist()[0]
            assert counts["clips"] in (rows, rows - gone) and counts["cut"] in (rows, rows - gone)
            answers += 1
            time.sleep(0.02)
        for writer, log, arguments in zip(writers, logs, pair, strict=True):
            if writer.exitcode:
                assert writer.exitcode == 1 and HELD in log.read_text(), log.read_text()
                refused += 1
                again = start(run, log, *arguments)
                again.join()
                assert again.exitcode == 0, log.read_text()
        assert len(read_clips(run / "clips.parquet")) == rows - gone * (second[0] == "takedown")
        assert not [path for path in run.rglob(".*") if path.is_file()]
        shutil.rmtree(run)
        print(number, refused, answers, flush=True)
    print(f"{refused} of {2 * TRIES} writers refused, {answers} answers")
    assert 0 < refused <= TRIES
