"""Training over two nodes on one machine: ranks, agents and nodes are killed, and the adapter has the bytes of a run
that nobody disturbed. Under torchrun, and under Ray Train on a cluster of real nodes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from common.recipe import dump_recipe
from common.runs import RunFolder
from tests.common.executors.ray_head import environment, free_port, kill_tree, ray_node, wait_for_port
from tests.training.launch.test_local import wait_for_step
from training.config import CheckpointConfig, TrainConfig
from training.train import train

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
STEPS = 30


@pytest.fixture
def alone(config: TrainConfig, run: RunFolder) -> bytes:
    """The adapter of the undisturbed run; the other run's folder gets its train.yaml."""
    config = replace(config, steps=STEPS, checkpoint=CheckpointConfig(every_steps=1))
    train(undisturbed := RunFolder(run.root.with_name("alone")), config)
    run.root.mkdir(parents=True, exist_ok=True)
    (run.root / "train.yaml").write_text(dump_recipe(config))
    return adapter_of(undisturbed)


def adapter_of(run: RunFolder) -> bytes:
    return (run.checkpoints / "adapter" / "pytorch_model.pt").read_bytes()


def ranks_below(pid: int, words: str) -> list[psutil.Process]:
    """Processes below one whose command line holds the words."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if words in " ".join(child.cmdline()):
                found.append(child)
    return found


def wait_for_rank(pid: int, words: str, seconds: float = 120) -> psutil.Process:
    end = time.monotonic() + seconds
    while not (found := ranks_below(pid, words)):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found[0]


def agent(run: RunFolder, port: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    """`torchrun` as docs/launch.md has it, for one node of one rank."""
    where = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=soak", "--local-addr=127.0.0.1"]
    command = ["--nnodes=2", "--nproc-per-node=1", *where, "--max-restarts=10", "--shutdown-timeout=5"]
    command += ["-m", "training.train", str(run.root)]
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    log = (run.root / "agents.log").open("ab")
    return subprocess.Popen([*torchrun, *command], env=variables, stdout=log, stderr=log)


def test_a_rank_and_an_agent_of_torchrun_are_killed(alone: bytes, run: RunFolder, tmp_path: Path) -> None:
    port = free_port()
    # As docs/launch.md says: else a new group finds the addresses of the old one in the store of the first agent.
    variables = environment(tmp_path, OMP_NUM_THREADS="1", TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    first = agent(run, port, variables)
    wait_for_port(port, first)  # the one that keeps the rendezvous; without it the others end
    second = agent(run, port, variables)
    try:
        wait_for_step(run, 3)
        wait_for_rank(second.pid, "training.train").kill()
        wait_for_step(run, 10)
        orphan = wait_for_rank(second.pid, "training.train")
        second.kill()  # the agent alone: its rank ends by itself
        second.wait()
        orphan.wait(10)
        second = agent(run, port, variables)  # as Kubernetes makes a new pod
        assert (first.wait(300), second.wait(300)) == (0, 0), (run.root / "agents.log").read_text()[-3000:]
    finally:
        kill_tree(first.pid)
        kill_tree(second.pid)
    assert adapter_of(run) == alone


LAUNCH = """
import sys, time
from pathlib import Path
from common.executors.config import ExecutorConfig
from common.executors.ray_connect import connect_ray
from common.progress import setup_logging
from common.recipe import load_recipe
from common.runs import RunFolder
from training.config import TrainConfig
from training.launch.on_ray import launch_on_ray
if __name__ == "__main__":
    setup_logging()
    run = RunFolder(Path(sys.argv[1]))
    config = load_recipe(run.root / "train.yaml", TrainConfig)
    executor = ExecutorConfig("ray", ray_address=sys.argv[2])
    connect_ray(executor)
    import ray
    while ray.cluster_resources().get("CPU", 0) < 2:
        time.sleep(0.5)
    launch_on_ray(run, config, 2, executor)
"""


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Address of a head without cores, the environment of its clients and the options of its nodes."""
    (folder / "token").write_text("0123456789abcdef" * 4)
    variables = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    port = free_port()
    options = [f"--port={port}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir=/tmp/rs{os.getpid()}"]
    with ray_node("--head", *options, f"--ray-client-server-port={free_port()}", variables=variables) as head:
        wait_for_port(port, head)
        yield f"127.0.0.1:{port}", variables, [f"--address=127.0.0.1:{port}", "--num-cpus=1"]


def test_a_worker_and_a_node_of_ray_are_killed(alone: bytes, run: RunFolder, tmp_path: Path) -> None:
    with cluster(tmp_path) as (address, variables, options), ExitStack() as nodes:
        kept = nodes.enter_context(ray_node(*options, variables=variables))
        wait_for_rank(kept.pid, "raylet")
        time.sleep(5)  # two that start at once on one machine take each other's names
        lost = nodes.enter_context(ray_node(*options, variables=variables))
        (tmp_path / "launch.py").write_text(LAUNCH)
        command = [sys.executable, str(tmp_path / "launch.py"), str(run.root), address]
        log = (run.root / "driver.log").open("ab")
        driver = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            wait_for_step(run, 3)
            wait_for_rank(lost.pid, "RayTrainWorker").kill()
            wait_for_step(run, 10)
            kill_tree(lost.pid)
            nodes.enter_context(ray_node(*options, variables=variables))
            assert driver.wait(500) == 0, (run.root / "driver.log").read_text()[-3000:]
        finally:
            kill_tree(driver.pid)
    assert adapter_of(run) == alone
