"""Ray workers, and the room that the Ray cluster has for them."""

import signal
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

from common.executors.config import ExecutorConfig
from common.executors.stage import StageError

SETTLE_SECONDS, START_SECONDS = 5.0, 60.0  # how long to wait for resources for all workers, and for at least one


class WorkerKind(NamedTuple):
    """What a worker reserves, of cores, GPUs and custom resources, and how many are wanted: `workers`, 0 for as many as
    there is room for."""

    cpus: float
    gpus: float = 0.0
    resources: tuple[tuple[str, float], ...] = ()
    workers: int = 0


class RayWorker:
    """A Ray actor that is a `common.executors.host.Host`, with its reservation."""

    ahead = 1

    def __init__(self, kind: WorkerKind, host: Any) -> None:
        import ray

        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        options: dict[str, Any] = {"num_cpus": kind.cpus, "num_gpus": kind.gpus, "resources": dict(kind.resources)}
        actor: Any = ray.remote(type(host)).options(**options, max_restarts=0)
        self.host = host
        self._actor: Any = actor.remote(*host.arguments)
        self.started: Future[Any] = self._actor.__ray_call__.remote(_die_when_stopped).future()
        self._last: Future[Any] = self.started

    def load(self, step: int) -> "Future[list[int]]":
        """Start loading in the actor."""
        self._last = self._actor.load.remote(step).future()
        return self._last

    def submit(self, tasks: Sequence[Any]) -> "Future[list[Any]]":
        """Start the tasks in the actor."""
        self._last = self._actor.run.remote(tasks).future()
        return self._last

    def death_reason(self) -> str:
        """Ray knows the exit code of an actor only as a guess; of its own memory monitor it is sure."""
        import ray

        error = self._last.exception() if self._last.done() else None
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return "was killed by Ray because memory ran out"
        return "was killed or crashed; the logs of Ray on its machine say more"

    def stop(self) -> None:
        """Kill the actor; it is gone already when Ray has been shut down."""
        import ray

        if ray.is_initialized():
            with suppress(ray.exceptions.ActorHandleNotFoundError):  # the actor of an earlier Ray session
                ray.kill(self._actor)


def _die_when_stopped(host: Any) -> None:
    """Called first in every actor: SIGTERM ends it at once. Ray sends it to workers whose driver has died or whose node
    leaves, and makes of it a SystemExit that a unit would take for its own failure, be recorded with it, and lose an
    attempt, while the actor went on to the next unit."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ray_room(kind: WorkerKind, config: ExecutorConfig) -> int:
    """Number of workers of this kind that the cluster has room for.

    Waits a limited time for resources of actors that have just ended, or of other jobs. Raises StageError when there is
    no room for one.
    """
    import ray

    needs = {"CPU": kind.cpus, "GPU": kind.gpus} | dict(kind.resources)

    def room(resources: Mapping[str, float]) -> int:
        return min(int(resources.get(name, 0.0) / need + 1e-6) for name, need in needs.items() if need)

    offered = ray.cluster_resources()
    whole = min(room(offered), kind.workers or room(offered))
    if whole < 1:
        raise StageError(f"Ray at '{config.ray_address}' offers {offered}: no room for one worker; add nodes or GPUs.")
    started = time.monotonic()
    while True:
        free = min(whole, room(ray.available_resources()))
        waited = time.monotonic() - started
        if free == whole or (free >= 1 and waited > SETTLE_SECONDS):
            return free
        if waited > START_SECONDS:
            raise StageError(
                f"Ray at '{config.ray_address}' has {ray.available_resources()} free of {offered}: no room for one "
                f"worker after {waited:.0f} s; wait until other jobs end or lower executor.cpus_per_worker."
            )
        time.sleep(0.1)


def ray_offers(resource: str) -> float:
    """How much of a custom resource the nodes of the cluster have together."""
    import ray

    return float(ray.cluster_resources().get(resource, 0.0))


def check_ray(stages: str, config: ExecutorConfig, patience: float = 0.0) -> None:
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
        f"Ray at '{config.ray_address}' has no node left during stage {stages}: it was killed or its machine went "
        "away. Run the same command again to resume; finished work is kept."
    )
