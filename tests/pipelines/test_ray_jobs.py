"""Curation as a job of a Ray cluster: submitted with its wheel, stopped, submitted again; on a real head."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.common.executors.ray_head import environment, free_port, job, job_record, ray_node, wait_for_port
from tests.pipelines.command_line import run_here

ROOT = Path(__file__).parents[2]
CURATE = ["curate", "--recipe", str(ROOT / "tests" / "tiny.yaml"), "--set", "executor.workers=2"]
pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a head with two cores, in token mode."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "token").write_text("0123456789abcdef" * 4)
    port, dashboard = free_port(), free_port()
    variables = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    # Our modules are not on the search path: the job brings them.
    others = [folder for folder in sys.path if folder and not Path(folder).is_relative_to(ROOT)]
    # Ray installs a wheel of a job with all that it requires, unless pip is told that this is there.
    head = variables | {"PYTHONPATH": os.pathsep.join(others), "PIP_NO_DEPS": "1"}
    # The path of its sockets may have 107 letters.
    session = Path(f"/tmp/rj{os.getpid()}")
    options = [f"--port={port}", "--num-cpus=2", f"--dashboard-port={dashboard}", f"--temp-dir={session}"]
    options += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    with ray_node("--head", *options, variables=head) as node:
        wait_for_port(dashboard, node)
        yield variables | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def submit(
    variables: dict[str, str], name: str, wheel: Path, run: Path, *options: str, entry: Sequence[str] = CURATE
) -> int:
    """`ray job submit` as docs/ray.md has it; the exit code of the client."""
    brought = {"py_modules": [str(wheel)], "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    command = [sys.executable, "-m", "pipelines.cli.start", *entry, "--run", str(run), "--ray", "auto"]
    runtime = ["--runtime-env-json", json.dumps(brought)]
    done = job(variables, "submit", "--submission-id", name, *runtime, *options, "--", *command)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def wait_for_work(variables: dict[str, str], name: str, run: Path) -> None:
    """Until the job has recorded its first outcomes."""
    end = time.monotonic() + 180
    while not any((run / "ledger").glob("*.jsonl")):
        ended = job_record(variables, name)["status"] not in ("PENDING", "RUNNING")
        assert not ended and time.monotonic() < end, job(variables, "logs", name).stdout
        time.sleep(0.3)


def test_a_job_is_stopped_and_goes_on_when_submitted_again(
    cluster: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert submit(cluster, "first", wheel, run, "--no-wait") == 0
    wait_for_work(cluster, "first", run)
    job(cluster, "stop", "first")
    log = job(cluster, "logs", "first").stdout.strip().splitlines()
    assert log[-1].startswith("stopped by SIGTERM: ") and log[-1].endswith("run the same command again to go on"), log
    assert job_record(cluster, "first")["status"] == "STOPPED"
    assert not (run / "clips.parquet").exists()
    assert submit(cluster, "again", wheel, run) == 0
    assert job_record(cluster, "again")["status"] == "SUCCEEDED"
    assert run_here(*CURATE, "--run", alone := tmp_path / "alone").returncode == 0
    assert (run / "clips.parquet").read_bytes() == (alone / "clips.parquet").read_bytes()
    assert submit(cluster, "once-more", wheel, run) == 0  # nothing is left to do


def test_a_drained_job_ends_with_75_which_only_its_record_holds(
    cluster: dict[str, str], wheel: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert submit(cluster, "drained", wheel, run, "--no-wait") == 0
    wait_for_work(cluster, "drained", run)
    (driver,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or [])[1:3] == ["-m", "pipelines.cli.start"] and str(run) in words
    ]
    driver.terminate()
    while job_record(cluster, "drained")["status"] == "RUNNING":
        time.sleep(0.3)
    assert job_record(cluster, "drained")["driver_exit_code"] == 75
    assert submit(cluster, "wrong", wheel, run, entry=("curate", "--set", "curation.nothing=1")) == 1
    assert job_record(cluster, "wrong")["driver_exit_code"] == 1
