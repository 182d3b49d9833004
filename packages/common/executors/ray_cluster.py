"""Ray workers, and the room that the Ray cluster has for them."""

import gc
import os
import sys
import time
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.stage import Stage, StageError
from common.executors.workers import IdleWorkers, WorkerKind, WorkerTask
from common.ledger.store import Outcome, Unit

SETTLE_SECONDS, START_SECONDS = 5.0, 60.0  # how long to wait for resources for all workers, and for at least one


class Host:
    """The class of the Ray actors: holds one job after the other."""

    def __init__(self) -> None:
        self.job: WorkerTask | None = None

    def load(self, job: WorkerTask | None) -> None:
        """Release the current job, then load this one."""
        self.job = None
        gc.collect()
        if job is not None:
            job.load()
            self.job = job

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Run one unit."""
        assert self.job is not None
        return self.job.attempt(unit, attempt)


class RayWorker:
    """A Ray actor with its reservation: CPUs, GPUs, and the custom resource `lane:NAME` where the cluster has it."""

    def __init__(self, cpus: float, gpus: float, lane: str) -> None:
        import ray

        resource = f"lane:{lane}"
        resources = {resource: 1.0} if lane and resource in ray.cluster_resources() else {}
        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "max_restarts": 0}
        actor: Any = ray.remote(Host).options(**options)
        self._actor: Any = actor.remote()
        self._last: Future[Any] | None = None

    def load(self, job: WorkerTask | None) -> "Future[None]":
        """Start loading in the actor."""
        future: Future[None] = self._actor.load.remote(job).future()
        self._last = future
        return future

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Start one unit in the actor."""
        future: Future[Outcome] = self._actor.attempt.remote(unit, attempt).future()
        self._last = future
        return future

    def death_reason(self) -> str:
        """Ray knows the exit code of an actor only as a guess; of its own memory monitor it is sure."""
        import ray

        error = self._last.exception() if self._last and self._last.done() else None
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return "was killed by Ray because memory ran out"
        return "was killed or crashed; the logs of Ray on its machine say more"

    def stop(self) -> None:
        """Kill the actor; it is gone already when Ray has been shut down."""
        import ray

        if ray.is_initialized():
            with suppress(ray.exceptions.ActorHandleNotFoundError):  # the actor of an earlier Ray session
                ray.kill(self._actor)


def ray_capacity(stage: Stage, config: ExecutorConfig, kind: WorkerKind, idle: IdleWorkers | None) -> int:
    """Number of workers that Ray has resources for now; an actor beyond that would wait forever.

    Waits a limited time for resources of actors that have just ended, or of other jobs. Raises StageError when there
    is no room for one worker.
    """
    import ray

    if idle and not stage.lanes:
        idle.clear(keep=kind)  # idle workers of other kinds still reserve resources
    needs = {name: need for name, need in (("CPU", kind[1]), ("GPU", kind[2])) if need}

    def capacity(resources: dict[str, float]) -> int:
        return min((int(resources.get(name, 0.0) / need + 1e-6) for name, need in needs.items()), default=sys.maxsize)

    offered = ray.cluster_resources()
    whole = capacity(offered)
    requested = len(stage.lanes) or config.workers or (whole if needs else len(os.sched_getaffinity(0)))
    if whole < 1 or whole < len(stage.lanes):
        raise StageError(f"Ray at '{config.ray_address}' offers {offered}: no room for one worker; add nodes or GPUs.")
    started, most = time.monotonic(), min(requested, whole)
    while True:
        free = min(most, capacity(ray.available_resources()) + (idle.count(kind) if idle else 0))
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
    """Raises StageError when the cluster has no node left: its actors would otherwise be waited for forever.

    Ray takes some seconds to notice a lost node. `patience` is how long (seconds) to wait for that where an error has
    already shown that something is wrong.
    """
    import ray

    started = time.monotonic()
    while any(node["Alive"] for node in ray.nodes()):
        if time.monotonic() - started >= patience:
            return
        time.sleep(0.5)
    ray.shutdown()
    raise StageError(
        f"Ray at '{config.ray_address}' has no node left during stage '{stage.name}': it was killed or its "
        "machine went away. Run the same command again to resume; finished work is kept."
    )
