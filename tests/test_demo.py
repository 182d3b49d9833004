"""The whole flow at its smallest: through the real command, and killed with -9 on the way."""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from common.media.audio import read_audio
from common.media.index import probe
from common.media.marks import is_generated
from common.runs import read_json

TINY = Path(__file__).parent / "tiny.yaml"
STEPS = ("curate", "latents", "train", "generate", "eval")
SUMMARY_KEYS = set(
    [
        "sources",
        "clips",
        "kept",
        "refused",
        "faults",
        "false_refusals",
        "offsets",
        "sync_c",
        "metrics",
        "video",
        "seconds",
    ]
)


def _start(run: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli.main", "run", "--recipe", str(TINY), "--run", str(run), *options]
    log = (run.parent / f"{run.name}.log").open("a")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)


def _finish(run: Path, *options: str) -> None:
    process = _start(run, *options)
    assert process.wait(timeout=280) == 0, (run.parent / f"{run.name}.log").read_text()[-3000:]


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _finished(run: Path) -> set[str]:
    return {path.stem for path in (run / "logs" / "steps").glob("*.json")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """A run whose stages work in the calling process: what the killed one, on a pool of all cores, is held against."""
    run = tmp_path_factory.mktemp("demo") / "run"
    _finish(run, "--set", "executor.workers=1")
    return run


@pytest.mark.timeout(600)
def test_it_ends_in_a_video_with_sound_and_a_report(undisturbed):
    video = undisturbed / "videos" / "demo.mp4"
    generated = {path.parent.name for path in (undisturbed / "videos").rglob("*.mp4") if is_generated(path)}
    assert generated == {"videos", "turned", "adapter", "swapped_audio", "base"}  # not what was filmed or drawn
    facts = probe(video)
    assert facts.has_audio and facts.fps == 25 and facts.duration == pytest.approx(6.0, abs=0.05)
    assert len(read_json(undisturbed / "videos" / "demo.json")["chunk_starts"]) >= 3
    assert abs(read_audio(video)).max() > 0.1
    page = (undisturbed / "report" / "index.html").read_text()
    avatar, turned = (probe(undisturbed / "videos" / name) for name in ("demo_avatar.mp4", "turned/demo_avatar.mp4"))
    assert avatar.frames == turned.frames == facts.frames and avatar.has_audio
    assert "The second system says the same" in page and "avatar, the camera swings" in page
    assert "data:video/mp4;base64," in page and "<script src" not in page and 'href="http' not in page


def test_the_summary_says_what_the_report_shows(undisturbed):
    summary = read_json(undisturbed / "report" / "summary.json")
    assert set(summary) >= SUMMARY_KEYS
    assert summary["sources"] == 4 + 2 + 20 and 0 < summary["kept"] <= summary["clips"]
    assert set(summary["seconds"]) == set(STEPS)
    assert {"ground_truth", "adapter", "swapped_audio", "base"} <= set(summary["sync_c"])
    assert summary["offsets"]["cases"] == 2


def test_a_second_call_does_nothing_again(undisturbed):
    made = ("clips.parquet", "shards/index.parquet", "videos/demo.mp4", "report/index.html", "versions.json")
    files = [undisturbed / name for name in made]
    before, cpu = [path.stat().st_mtime_ns for path in files], _cpu_of_children()
    _finish(undisturbed, "--set", "executor.workers=1")
    assert [path.stat().st_mtime_ns for path in files] == before
    assert _cpu_of_children() - cpu < 2.5  # 1.3 where nothing else runs: neither torch nor matplotlib is loaded


@pytest.mark.soak  # every step has a test of its own kill
@pytest.mark.timeout(900)
def test_killed_in_every_step_it_goes_on_and_ends_the_same(undisturbed, tmp_path):
    run, chance = tmp_path / "run", random.Random(5)
    for number in range(len(STEPS)):
        process = _start(run)
        until = time.monotonic() + 240
        while len(_finished(run)) < number and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.2, 4.0))
        for group in {process.pid, *_ranks(run)}:
            _kill_group(group)
        process.wait()
    _finish(run)
    for name in ("clips.parquet", "shards/index.parquet", "videos/manifest.parquet", "report/metrics.parquet"):
        assert pq.read_table(run / name).equals(pq.read_table(undisturbed / name)), name
    for shard in sorted((undisturbed / "shards").glob("*.tar")):
        assert shard.read_bytes() == (run / "shards" / shard.name).read_bytes()
    assert (run / "clips.parquet").read_bytes() == (undisturbed / "clips.parquet").read_bytes()


def _ranks(run: Path) -> list[int]:
    """Training ranks live in sessions of their own; they name the run on their command line."""
    found = subprocess.run(["pgrep", "-f", f"training.train {run}"], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
