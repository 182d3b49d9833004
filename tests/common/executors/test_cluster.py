"""A flow on four Ray nodes of one machine: nodes, actors and drivers are killed; the rows are those of a quiet run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.common.executors.ray_head import environment, free_port, kill_tree, ray_node, wait_for_port
from tests.common.executors.test_flow_run import go, sources
from tests.common.executors.test_run import calls

pytestmark = pytest.mark.soak

SOURCES, SECONDS = 120, 0.05
SCRIPT = """
import sys
from pathlib import Path
from common.executors.config import ExecutorConfig
from common.process.signals import Stopped, stop_signals
from tests.common.executors.test_flow_run import go, sources
if __name__ == "__main__":
    folder, address, exchange = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = ExecutorConfig("ray", 0, ray_address=address, gpus_per_worker=0.0, exchange=exchange)
    with stop_signals():
        try:
            go(folder, sources(int(sys.argv[4]), float(sys.argv[5])), config)
        except Stopped:
            sys.exit(75)
"""


class Cluster:
    """A head without cores and three nodes: of one core each, one with a lane, one with a pool of its own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        (folder / "token").write_text("0123456789abcdef" * 4)
        self.variables = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
        self.port, self.session, self._stack = free_port(), Path(f"/tmp/rc{os.getpid()}"), stack
        self.address = f"127.0.0.1:{self.port}"
        options = [f"--port={self.port}", "--num-cpus=0", f"--temp-dir={self.session}", "--include-dashboard=false"]
        head = stack.enter_context(ray_node("--head", *options, variables=self.variables))
        wait_for_port(self.port, head)
        self.resources = ["{}", '{"lane:web": 1}', '{"pool:gpu": 1}']
        self.nodes = [self._start(each) for each in self.resources]

    def _start(self, resources: str) -> "subprocess.Popen[bytes]":
        options = [f"--address={self.address}", "--num-cpus=1", f"--resources={resources}"]
        return self._stack.enter_context(ray_node(*options, variables=self.variables))

    def kill_node(self, number: int) -> None:
        """Kill a node with all that runs on it, and start one like it."""
        kill_tree(self.nodes[number].pid)
        self.nodes[number] = self._start(self.resources[number])

    def actors(self) -> list[psutil.Process]:
        """The workers that hold a flow."""
        family = [process for node in self.nodes for process in psutil.Process(node.pid).children(recursive=True)]
        return [process for process in family if "Host" in " ".join(process.cmdline())]

    def driver(self, folder: Path, exchange: str = "") -> "subprocess.Popen[bytes]":
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "script.py").write_text(SCRIPT)
        words = [str(folder / "script.py"), str(folder), self.address, exchange, str(SOURCES), str(SECONDS)]
        return subprocess.Popen([sys.executable, *words], env=self.variables)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), stack)
        yield cluster
    shutil.rmtree(cluster.session, ignore_errors=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, object]]]:
    return list(go(tmp_path_factory.mktemp("alone"), sources(SOURCES, SECONDS)).rows())


def begun(folder: Path, count: int, driver: "subprocess.Popen[bytes]") -> None:
    """Wait until so many units have begun."""
    end = time.monotonic() + 120
    while not (folder / "calls").exists() or len(calls(folder)) < count:
        assert driver.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("victim", ["node", "actor", "driver", "job"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_are_those_of_an_undisturbed_run(
    cluster: Cluster, undisturbed: list[tuple[str, dict[str, object]]], tmp_path: Path, victim: str, seed: int
) -> None:
    chance = random.Random(f"{victim} {seed}")
    driver = cluster.driver(tmp_path)
    begun(tmp_path, chance.randint(20, 300), driver)
    if victim == "node":
        cluster.kill_node(chance.randrange(3))
    elif victim == "actor":
        chance.choice(cluster.actors()).kill()
    else:
        driver.send_signal(signal.SIGKILL if victim == "driver" else signal.SIGTERM)
    code = driver.wait(timeout=240)
    assert code == {"driver": -signal.SIGKILL, "job": 75}.get(victim, 0)
    if code:
        assert cluster.driver(tmp_path).wait(timeout=240) == 0
    assert list(go(tmp_path, sources(SOURCES, SECONDS)).rows()) == undisturbed
    # Each worker had a unit in work; hand-outs without a record go back whole where a machine is lost.
    again = sum(count - 1 for count in Counter(calls(tmp_path)).values())
    print(victim, seed, "units begun again:", again, "of", len(calls(tmp_path)))
    assert again <= 0.02 * len(calls(tmp_path)) + 4
