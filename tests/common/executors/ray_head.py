"""Ray nodes of tests as an operator starts them: processes of their own, with a home folder and ports of their own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
def ray_node(*options: str, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start OPTIONS` until the block ends, with everything that it started."""
    command = [*RAY, "start", *options, "--block", "--disable-usage-stats"]
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
