"""Connection of this process to Ray: a private one of its own, or a cluster that is joined."""

import atexit
import logging
import math
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.stage import StageError
from common.process.offline import offline_environment, refuse_telemetry
from common.process.signals import Stopped, keep_handlers

OBJECT_STORE_BYTES = 100 * 2**20  # rows are small
QUIET_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed",  # recorded as a ledger row instead
}


def connect_ray(config: ExecutorConfig) -> None:
    """Join the cluster of `config`, or start a private one; no-op when connected. Raises StageError."""
    refuse_telemetry()
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray  # takes a second, so only runs on Ray import it

    if ray.is_initialized():
        return
    search = os.pathsep.join(filter(None, sys.path))  # workers use the same module search path
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.ray_address != "local":
        try:
            variables = {"PYTHONPATH": search} | offline_environment()
            _init(address=config.ray_address, runtime_env={"env_vars": variables}, **quiet)
        except ConnectionError as error:
            reason = str(error).strip().splitlines()[-1][:200] if str(error).strip() else "no answer"
            raise StageError(
                f"Ray at '{config.ray_address}' cannot be joined ({reason}): check that it runs and accepts this user, "
                "or set executor.ray_address=local to start a private one."
            ) from error
        return
    # A private Ray inherits the environment; a cluster needs a runtime_env, which is slower.
    workers = config.workers or len(os.sched_getaffinity(0))
    cores = max(1, math.ceil(workers * config.cpus_per_worker))
    atexit.register(_end_private_ray)
    with _environment("PYTHONPATH", search):
        _init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)


def _init(**options: Any) -> None:
    import ray

    with keep_handlers():
        try:
            ray.init(**options)
        except SystemExit as end:  # of the handler of SIGTERM that Ray installs first of all
            raise Stopped(signal.SIGTERM) from end


def _end_private_ray() -> None:
    """Shut a private Ray down with the agents of its raylet, which would outlive it by some seconds."""
    import ray

    raylets = _children(os.getpid(), "raylet")
    agents = [agent for raylet in raylets for agent in _children(raylet)]
    ray.shutdown()
    for agent in agents:
        with suppress(ProcessLookupError):
            os.kill(agent, signal.SIGKILL)


def _children(parent: int, name: str = "") -> list[int]:
    """Process ids of the children of a process, those of one name if it is given; none where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            before, _, after = file.read_text().rpartition(")")
            if int(after.split()[1]) == parent and before.partition("(")[2].startswith(name):
                found.append(int(file.parent.name))
    return found


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
