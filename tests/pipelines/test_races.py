"""Two commands on one run folder at once, and a reader beside them: the second is told, nothing is torn or lost."""

import os
import random
import shutil
import subprocess
import sys
import time
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


def start(run: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "pipelines.cli.start", *arguments[:1], "--run", str(run), *arguments[1:]]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run up to its shards."""
    run = tmp_path_factory.mktemp("races") / "run"
    done = start(run, "run", *TINY, "--to", "latents")
    assert done.communicate()[0] is None and done.returncode == 0
    return run


@pytest.mark.soak
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
        writers = [start(run, *pair[0])]
        time.sleep(delays.uniform(0.0, 3.0))
        writers.append(start(run, *pair[1]))
        while any(writer.poll() is None for writer in writers):
            counts = run_query(run, COUNT).to_pylist()[0]
            assert counts["clips"] in (rows, rows - gone) and counts["cut"] in (rows, rows - gone)
            answers += 1
        for writer, arguments in zip(writers, pair, strict=True):
            words = writer.communicate()[1]
            if writer.returncode:
                assert writer.returncode == 1 and HELD in words, words
                refused += 1
                again = start(run, *arguments)
                assert again.communicate()[1] is not None and again.returncode == 0
        assert len(read_clips(run / "clips.parquet")) == rows - gone * (second[0] == "takedown")
        assert not [path for path in run.rglob(".*") if path.is_file()]
        shutil.rmtree(run)
    print(f"{refused} of {2 * TRIES} writers refused, {answers} answers")
    assert 0 < refused <= TRIES
