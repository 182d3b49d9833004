"""Ray nodes of tests as an operator starts them: processes of their own, with a home folder and ports of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import psutil

# The command `ray`, of the interpreter at work; `ray stop` is never used: it ends the Rays of others too.
RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def environment(home: Path, **variables: str) -> dict[str, str]:
    """That of this process without its Ray settings, with another home folder and our modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join(folder for folder in sys.path if folder)
    return kept | {"HOME": str(home), "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"} | variables


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ray_node(*options: str, variables: dict[str, str], before: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start OPTIONS` until the block ends, with everything that it started; `before` are words in front."""
    command = [*before, *RAY, "start", *options, "--block", "--disable-usage-stats"]
    with open(os.devnull, "wb") as nowhere:
        node = subprocess.Popen(
            command, env=variables, cwd=variables["HOME"], stdout=nowhere, stderr=nowhere, start_new_session=True
        )
    try:
        yield node
    finally:
        kill_tree(node.pid)
        node.wait()


def kill_tree(pid: int) -> None:
    """Kill a process and all its children."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(pid).children(recursive=True)
        for process in (psutil.Process(pid), *family):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def wait_for_port(port: int, node: subprocess.Popen[bytes], seconds: float = 60.0) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and node.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        time.sleep(0.2)
    raise AssertionError(f"nobody listens on port {port}: the node ended with {node.poll()}")


def job(variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`ray job WORDS`."""
    return subprocess.run([*RAY, "job", *words], env=variables, capture_output=True, text=True, timeout=600)


def job_record(variables: dict[str, str], name: str) -> dict[str, Any]:
    """What the job server knows of a job."""
    return _answer(variables, f"api/jobs/{name}")


def _answer(variables: dict[str, str], path: str) -> dict[str, Any]:
    token = Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text()
    address = f"{variables['RAY_API_SERVER_ADDRESS']}/{path}"
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return dict(json.load(answer))


# Mounts a folder over another one, for the command that follows and what it starts.
PRIVATELY = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
PRIVATELY += ["sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"']


class Cluster:
    """A head without cores, with a job server, and three nodes of one core each: one with a lane, one with a GPU by
    name. With `shown`, every node has a folder of its own there, which lies in `folders`."""

    kinds = (["--resources={}"], ['--resources={"lane:web": 1}'], ["--num-gpus=1"])

    def __init__(self, folder: Path, stack: ExitStack, shown: Path | None = None) -> None:
        (folder / "token").write_text("0123456789abcdef" * 4)
        self.variables = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
        self.address, dashboard = f"127.0.0.1:{free_port()}", free_port()
        self.folders = [folder / f"machine{number}" for number in range(4)] if shown else []
        self._stack, self._shown = stack, shown
        for each in (*self.folders, *filter(None, [shown])):
            each.mkdir(parents=True)
        # The path of its sockets may have 107 letters.
        self.session = Path(f"/tmp/rn{os.getpid()}{len(str(shown or ''))}")
        options = [f"--port={self.address.rpartition(':')[2]}", "--num-cpus=0", "--num-gpus=0"]
        options += [f"--temp-dir={self.session}", f"--dashboard-port={dashboard}"]
        options += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
        head = stack.enter_context(self._node(0, "--head", *options))
        wait_for_port(dashboard, head)
        self.variables["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
        self._names = count()
        self.nodes = [self._start(number) for number in range(3)]

    def _node(self, number: int, *options: str) -> Any:
        before = [*PRIVATELY, str(self.folders[number]), str(self._shown)] if self._shown else []
        return ray_node(*options, variables=self.variables, before=before)

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        """A node that has joined. Two that start at once on one machine may get in each other's way, and under load a
        node gives up after half a minute: another one is then started."""
        name = f"node{next(self._names)}"
        options = ["--num-cpus=1", f"--dashboard-agent-listen-port={free_port()}", f"--node-name={name}"]
        node = self._stack.enter_context(
            self._node(number + 1, f"--address={self.address}", *options, *self.kinds[number])
        )
        while node.poll() is None:
            nodes = _answer(self.variables, "nodes?view=summary")["data"]["summary"]
            if any(each["raylet"].get("nodeName") == name and each["raylet"]["state"] == "ALIVE" for each in nodes):
                return node  # type: ignore[no-any-return]
            time.sleep(0.5)
        return self._start(number)

    def kill_node(self, number: int) -> None:
        """Kill a node with all that runs on it, and start one like it."""
        kill_tree(self.nodes[number].pid)
        self.nodes[number] = self._start(number)

    def actors(self) -> list[psutil.Process]:
        """The workers that hold a flow."""
        family = [process for node in self.nodes for process in psutil.Process(node.pid).children(recursive=True)]
        return [process for process in family if "Host" in " ".join(process.cmdline())]
