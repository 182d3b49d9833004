"""Curation as a job on four Ray nodes of one machine: nodes, actors, drivers and jobs are killed, or nothing is shared
but object storage; what is left in the end is what an undisturbed run leaves."""

import json
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean

import psutil
import pyarrow.parquet as pq
import pytest

from common.ledger.store import ledger_rows
from common.runs import read_json
from miniature.config import SmallWorldConfig
from miniature.world.faults import draw_sources
from tests.common.executors.ray_head import Cluster, job, job_record
from tests.common.object_store import ObjectStore, object_store
from tests.curation.web import serve
from tests.pipelines.command_line import run_here
from tests.pipelines.noted_curate import begun_file

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]
WORLD = SmallWorldConfig(clean=24, offset=12, each_fault=1, seed=930_000)
RECIPE = """
extends: demo
small_world: null
sources: {{kind: urls, path: {list}}}
curation:
  download:
    allow_private_addresses: true
    egress: [{{name: web, pause_seconds: [0, 0], per_hour: 1000000, request_pause_seconds: 0}}]
executor: {{gpus_per_worker: 1.0, stop_seconds: 30}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A recipe of drawn sources that are to be downloaded from this machine."""
    folder = tmp_path_factory.mktemp("web")
    videos = draw_sources(folder / "drawn", WORLD)
    with serve() as web:
        lines = []
        for video in videos:
            if read_json(video.with_suffix(".json"))["truth"]["kind"] != "not_a_video":
                web.bodies[f"/{video.name}"] = ("video/mp4", video.read_bytes())
                lines.append(f"{web.address}/{video.name} {video.stem}")
        (folder / "list.txt").write_text("\n".join(lines))
        (folder / "recipe.yaml").write_text(RECIPE.format(list=folder / "list.txt"))
        yield folder / "recipe.yaml"


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("alone") / "run"
    done = run_here("curate", "--recipe", recipe, "--run", run, "--set", "executor.workers=1")
    assert done.returncode == 0, done.stderr
    return products(run)


def products(run: Path, shown: Path | None = None) -> dict[str, bytes]:
    """What a run has made, by file; the rows of its sources name its own place, which a worker may see as `shown`."""
    files = [run / "clips.parquet", run / "tracks.parquet", *run.glob("clips/*.mp4")]
    found = {file.relative_to(run).as_posix(): file.read_bytes() for file in files}
    sources = json.dumps(pq.read_table(run / "sources.parquet").to_pylist())
    return found | {"sources": sources.replace(str(shown or run), "").encode()}


def submit(cluster: Cluster, name: str, recipe: Path, run: Path, *options: str) -> None:
    """Submit the curation, without waiting."""
    command = [sys.executable, "-m", "tests.pipelines.noted_curate", "curate", "--recipe", str(recipe)]
    command += ["--run", str(run), "--ray", "auto", *options]
    environment = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "90"}})
    words = ["--submission-id", name, "--no-wait", "--runtime-env-json", environment, "--", *command]
    done = job(cluster.variables, "submit", *words)
    assert done.returncode == 0, done.stderr


def ended(cluster: Cluster, name: str, seconds: float = 400.0) -> str:
    """The status of a job when it has ended."""
    end = time.monotonic() + seconds
    while (status := job_record(cluster.variables, name)["status"]) in ("PENDING", "RUNNING"):
        assert time.monotonic() < end, job(cluster.variables, "logs", name).stdout[-3000:]
        time.sleep(0.3)
    return str(status)


def succeeded(cluster: Cluster, name: str) -> None:
    """Wait until a job has ended well."""
    assert ended(cluster, name) == "SUCCEEDED", job(cluster.variables, "logs", name).stdout[-3000:]


def begun(*folders: Path) -> list[str]:
    """Stage and unit of all that was begun, in no order of time where there are several folders."""
    files = filter(Path.exists, map(begun_file, folders))
    return [line for file in files for line in file.read_text().splitlines()]


def wait_for_units(cluster: Cluster, name: str, count: int, *folders: Path) -> None:
    """Until so many units have begun."""
    end = time.monotonic() + 240
    while len(begun(*folders)) < count:
        running = job_record(cluster.variables, name)["status"] in ("PENDING", "RUNNING")
        assert running and time.monotonic() < end, job(cluster.variables, "logs", name).stdout[-3000:]
        time.sleep(0.1)


def recorded(run: Path) -> dict[str, float]:
    """CPU seconds of what the ledger has of each stage and unit."""
    rows = ledger_rows(run / "ledger").select(["stage", "unit", "cpu_seconds"])
    return {f"{stage} {unit}": cpu for stage, unit, cpu in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


def drivers(run: Path) -> list[psutil.Process]:
    """The processes of a submitted command, without the shells that started it."""
    words = ["-m", "tests.pipelines.noted_curate"]
    found = [process for process in psutil.process_iter(["cmdline"]) if str(run) in (process.info["cmdline"] or ())]
    return [process for process in found if process.info["cmdline"][1:3] == words]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        yield cluster
    shutil.rmtree(cluster.session, ignore_errors=True)


@pytest.mark.parametrize("victim", ["node", "actor", "driver", "job"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_is_that_of_an_undisturbed_run(
    cluster: Cluster, recipe: Path, undisturbed: dict[str, bytes], tmp_path: Path, victim: str, seed: int
) -> None:
    chance, run, name = random.Random(f"{victim} {seed}"), tmp_path / "run", f"{victim}-{seed}"
    submit(cluster, name, recipe, run)
    wait_for_units(cluster, name, chance.randint(20, 400), run)
    known = recorded(run)
    if victim == "node":
        cluster.kill_node(chance.randrange(3))
    elif victim == "actor":
        chance.choice(cluster.actors()).kill()
    elif victim == "driver":
        (driver,) = drivers(run)
        driver.kill()
    else:
        job(cluster.variables, "stop", name)
    if victim in ("driver", "job"):
        assert ended(cluster, name) == {"driver": "FAILED", "job": "STOPPED"}[victim]
        known = recorded(run)
        before = len(begun(run))
        submit(cluster, f"{name}-again", recipe, run)
        succeeded(cluster, f"{name}-again")
    else:
        before = len(begun(run))
        succeeded(cluster, name)
    assert products(run) == undisturbed
    units, seconds = begun(run), recorded(run)
    assert not set(units[before:]) & set(known)
    # What is begun again comes first on new workers, whose first units pay for imports; a lost one cost the mean.
    of_stage: dict[str, list[float]] = {}
    for unit, spent in seconds.items():
        of_stage.setdefault(unit.split()[0], []).append(spent)
    again = sum((count - 1) * fmean(of_stage[unit.split()[0]]) for unit, count in Counter(units).items())
    print(
        f"{name}: {len(units)} units begun, {len(units) - len(set(units))} of them again, {again:.2f} CPU s of "
        f"{sum(seconds.values()):.1f} ({again / sum(seconds.values()):.2%})"
    )
    assert again <= 0.02 * sum(seconds.values())


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Path, ObjectStore]]:
    """Four machines that all have a folder of their own at one path, which is returned, and an object storage."""
    folder = tmp_path_factory.mktemp("apart")
    with object_store() as store, ExitStack() as stack:
        cluster = Cluster(folder, stack, shown=folder / "runs")
        yield cluster, folder / "runs", store
    shutil.rmtree(cluster.session, ignore_errors=True)


def test_machines_that_share_object_storage_alone_end_in_the_same_bytes(
    apart: tuple[Cluster, Path, ObjectStore], recipe: Path, undisturbed: dict[str, bytes]
) -> None:
    """The driver has the records of all; the files come by way of the storage."""
    cluster, runs, store = apart
    submit(cluster, "whole", recipe, runs / "whole", "--set", f"executor.exchange={store.url('bucket/whole')}")
    succeeded(cluster, "whole")
    own = [folder / "whole" for folder in cluster.folders]
    assert not (runs / "whole").exists() and all(begun(each) for each in own[1:]) and not begun(own[0])
    assert products(own[0], runs / "whole") == undisturbed
    units = begun(*own)
    assert len(units) == len(set(units))
    assert not any((each / "ledger").exists() for each in own[1:])


def test_a_new_machine_goes_on_with_the_mirror_of_the_one_that_held_the_records(
    apart: tuple[Cluster, Path, ObjectStore], recipe: Path, undisturbed: dict[str, bytes]
) -> None:
    cluster, runs, store = apart
    address = store.url("bucket/lost")
    options = ["--set", f"executor.exchange={address}", "--set", f"mirror={address}"]
    own = [folder / "lost" for folder in cluster.folders]
    submit(cluster, "lost", recipe, runs / "lost", *options)
    wait_for_units(cluster, "lost", 150, *own)
    job(cluster.variables, "stop", "lost")
    assert ended(cluster, "lost") == "STOPPED"
    known, before = recorded(own[0]), Counter(begun(*own))
    assert len(known) >= 100
    shutil.rmtree(own[0])
    submit(cluster, "found", recipe, runs / "lost", *options)
    succeeded(cluster, "found")
    assert products(own[0], runs / "lost") == undisturbed
    assert not (Counter(begun(*own)) - before).keys() & known.keys()
