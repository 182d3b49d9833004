"""Workers on Ray, and the cluster that gives them room. This is the one file that knows Ray."""

import gc
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.stage import Stage, StageError
from common.executors.workers import Shelf, WorkerKind, WorkerTask
from common.ledger.store import Outcome, Unit

SETTLE_SECONDS, START_SECONDS = 5.0, 60.0  # how long Ray may take to give room for all workers, and for one
OBJECT_STORE_BYTES = 100 * 2**20  # rows are small
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed",  # it becomes a ledger row
}


class Host:
    """What a Ray actor is: a place that holds one job after the other."""

    def __init__(self) -> None:
        self.job: WorkerTask | None = None

    def load(self, job: WorkerTask | None) -> None:
        """Let go of the job held so far, then load this one."""
        self.job = None
        gc.collect()
        if job is not None:
            job.load()
            self.job = job

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Do one unit."""
        assert self.job is not None
        return self.job.attempt(unit, attempt)


class RayWorker:
    """A Ray actor with what it reserves: cores, GPUs, and whatever else the cluster offers by name."""

    def __init__(self, cpus: float, gpus: float, lane: str) -> None:
        import ray

        named = f"lane:{lane}"
        resources = {named: 1.0} if lane and named in ray.cluster_resources() else {}
        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "max_restarts": 0}
        actor: Any = ray.remote(Host).options(**options)
        self._actor: Any = actor.remote()

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Begin loading in the actor."""
        future: Future[None] = self._actor.load.remote(job).future()
        return future

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit in the actor."""
        future: Future[Outcome] = self._actor.attempt.remote(unit, attempt).future()
        return future

    def stop(self) -> None:
        """End the actor; it is gone already when its Ray is."""
        import ray

        if ray.is_initialized():
            with suppress(ray.exceptions.ActorHandleNotFoundError):  # of an earlier Ray
                ray.kill(self._actor)


def connect_ray(config: ExecutorConfig) -> None:
    """Join the cluster of `config`, or start a private one, unless that has happened. Errors: StageError."""
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray  # takes a second; only who asks for Ray pays

    if ray.is_initialized():
        return
    search = os.pathsep.join(filter(None, sys.path))  # workers look for modules where we do
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if config.ray_address != "local":
        try:
            ray.init(address=config.ray_address, runtime_env={"env_vars": {"PYTHONPATH": search}}, **quiet)
        except ConnectionError as error:
            said = str(error).strip().splitlines()[-1][:200] if str(error).strip() else "no answer"
            raise StageError(
                f"Ray at '{config.ray_address}' cannot be joined ({said}): see that it runs and accepts this user, or "
                "set executor.ray_address=local for a private one."
            ) from error
        return
    # A private Ray inherits the environment; for a cluster it has to be shipped, which is slower.
    workers = config.workers or len(os.sched_getaffinity(0))
    cores = max(1, math.ceil(workers * config.cpus_per_worker))
    with _environment("PYTHONPATH", search):
        ray.init(
            address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
        )


def ray_room(stage: Stage, config: ExecutorConfig, kind: WorkerKind, kept: Shelf | None) -> int:
    """How many workers Ray can hold at this moment: an actor too many would wait for ever.

    Reservations of actors that have just ended, or of other people's, are waited for, but not for long.
    """
    import ray

    if kept and not stage.lanes:
        kept.clear(besides=kind)  # they hold what is needed now
    needs = {name: need for name, need in (("CPU", kind[1]), ("GPU", kind[2])) if need}

    def room(resources: dict[str, float]) -> int:
        return min((int(resources.get(name, 0.0) / need + 1e-6) for name, need in needs.items()), default=sys.maxsize)

    offered = ray.cluster_resources()
    whole = room(offered)
    wanted = len(stage.lanes) or config.workers or (whole if needs else len(os.sched_getaffinity(0)))
    if whole < 1 or whole < len(stage.lanes):
        raise StageError(f"Ray at '{config.ray_address}' offers {offered}: no room for one worker; add nodes or GPUs.")
    started, most = time.monotonic(), min(wanted, whole)
    while True:
        free = min(most, room(ray.available_resources()) + (kept.count(kind) if kept else 0))
        waited = time.monotonic() - started
        if free == most or (free and not stage.lanes and waited > SETTLE_SECONDS):
            return free
        if waited > START_SECONDS:
            raise StageError(
                f"Ray at '{config.ray_address}' has {ray.available_resources()} free of {offered}: no room for one "
                f"worker after {waited:.0f} s; wait until other jobs end or lower executor.cpus_per_worker."
            )
        time.sleep(0.1)


def check_ray(stage: Stage, config: ExecutorConfig, patience: float = 0.0) -> None:
    """A cluster without a node would let its actors be waited for without end. Ray needs some seconds to notice; so
    long is waited where something is wrong for sure. Errors: StageError."""
    import ray

    started = time.monotonic()
    while any(node["Alive"] for node in ray.nodes()):
        if time.monotonic() - started >= patience:
            return
        time.sleep(0.5)
    ray.shutdown()
    raise StageError(
        f"Ray at '{config.ray_address}' has no node left in the middle of stage '{stage.name}': it was killed or its "
        "machine went away. Run the same command again; finished work is kept."
    )


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
