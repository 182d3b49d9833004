"""One stage, many units: in this process, on a pool of processes or on Ray, with the same results in the same order.

Each worker holds one unit at a time, so the death of a worker is always the death of a known unit: that unit is tried
again on a fresh worker, the others never notice. Only rows travel; pixels stay in files.
"""

import logging
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from common.ledger import Key, Ledger, Outcome
from common.progress import progress
from common.runs import DiskFullError, disk_guard, fingerprint, plain

logger = logging.getLogger(__name__)
Unit = dict[str, Any]
Work = Callable[[Unit], Outcome]
T = TypeVar("T")


class StageError(RuntimeError):
    """A stage cannot run at all: its models do not load or its units are not well formed."""


@dataclass(frozen=True)
class Stage:
    """What is done to every unit, and all that its result depends on.

    `make()` runs once per worker (it loads models) and returns the function from one unit row, a dict with a "unit" id,
    to one Outcome; it must be picklable: a module-level function or a functools.partial of one. `params` (JSON values),
    `models` (role -> content hash) and `version` make the fingerprint; `reads` names the row fields the stage depends
    on (none = all).
    """

    name: str
    version: str
    params: dict[str, Any]
    models: dict[str, str]
    make: Callable[[], Work]
    reads: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the stage would compute something else."""
        return fingerprint([self.name, self.version, self.params, self.models])

    def input_hash(self, unit: Unit) -> str:
        """16 hex digits over the fields of `unit` that the stage reads."""
        return fingerprint({name: unit.get(name) for name in self.reads} if self.reads else unit)


@dataclass(frozen=True)
class ExecutorConfig:
    """Where stages run. `workers`: 0 = all cores (of this machine, or of the Ray cluster).

    "process" with one worker runs in the calling process, with more on spawned processes. `ray_address`: "local"
    starts a private Ray on this machine; anything else is handed to `ray.init`. `gpus_per_worker` (Ray only) may be a
    fraction.
    """

    kind: Literal["process", "ray"] = "process"
    workers: int = 0
    ray_address: str = "local"
    gpus_per_worker: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: expected 0 (all cores) or a positive number.")


def run_stage(
    stage: Stage, units: Iterable[Unit], ledger: Ledger, executor: ExecutorConfig, retry_failed: int = 2
) -> list[Outcome]:
    """Bring every unit through `stage` and return the outcomes in the order of `units`.

    Units the ledger knows as kept or rejected, or as failed 1 + `retry_failed` times, are not touched again; pending
    ones are. Every attempt is a durable row before the next begins. An exception in a unit, or the death of its worker,
    is a failed attempt of that unit alone. Errors: StageError when the stage itself cannot start, DiskFullError,
    RuntimeError when another run is at this stage of this ledger.
    """
    rows = list(units)
    keys = _keys(stage, rows)
    with ledger.open(stage.name, stage.fingerprint) as log:
        known = log.done()
        outcomes = [known.get(key) for key in keys]
        todo = deque(i for i, outcome in enumerate(outcomes) if not _settled(outcome, retry_failed))
        if todo:
            log.lock()
        with progress(len(rows), stage.name) as bar:
            bar.update(len(rows) - len(todo))
            for index, outcome in _attempts(stage, rows, outcomes, todo, executor) if todo else ():
                outcomes[index] = outcome
                log.append(keys[index], outcome)
                if outcome.state == "failed" and not _settled(outcome, retry_failed):
                    todo.append(index)
                else:
                    bar.update(1)
        log.compact()
    settled = [outcome for outcome in outcomes if outcome is not None]
    logger.info("%s: %s", stage.name, dict(Counter(outcome.state for outcome in settled)))
    return settled


def _keys(stage: Stage, rows: Sequence[Unit]) -> list[Key]:
    keys = [(row["unit"], stage.input_hash(row)) for row in rows]
    if len({unit for unit, _ in keys}) < len(keys):
        double = Counter(unit for unit, _ in keys).most_common(1)[0][0]
        raise StageError(f"Stage '{stage.name}' got the unit '{double}' more than once; unit ids must be unique.")
    return keys


def _settled(outcome: Outcome | None, retry_failed: int) -> bool:
    if outcome is None or outcome.state == "pending":
        return False
    return outcome.state != "failed" or outcome.attempt > retry_failed


def _next_attempt(outcome: Outcome | None) -> int:
    return 1 if outcome is None else outcome.attempt + (outcome.state == "failed")


def _attempts(
    stage: Stage, rows: list[Unit], outcomes: list[Outcome | None], todo: deque[int], config: ExecutorConfig
) -> Iterator[tuple[int, Outcome]]:
    """Attempt each row named in `todo`, which the caller may extend between two results; results come as they end."""
    running: dict[Future[Outcome], tuple[Worker, int]] = {}
    any_finished = False
    with _crew(stage, config, len(todo)) as crew:
        while todo or running:
            for worker in crew.take_idle(len(todo)):
                index = todo.popleft()
                running[worker.submit(rows[index], _next_attempt(outcomes[index]))] = worker, index
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, index = running.pop(future)
                error = future.exception()
                if error is None:
                    crew.give_back(worker)
                    any_finished = True
                    yield index, future.result()
                elif isinstance(error, worker.death):
                    if not any_finished and worker.loading.exception():
                        raise StageError(f"Stage '{stage.name}' cannot start: its worker died loading its models.")
                    crew.replace(worker)
                    yield index, _death(rows[index]["unit"], _next_attempt(outcomes[index]))
                else:
                    raise getattr(error, "cause", error)  # Ray wraps what was raised


def _death(unit: str, attempt: int) -> Outcome:
    message = "The worker process died on this unit (killed, out of memory, or a crash in a library)."
    return Outcome(
        unit, "failed", message=message, error_class="WorkerDied", attempt=attempt, host=socket.gethostname()
    )


# ---- what runs inside a worker


class Runner:
    """Holds the loaded stage inside a worker and turns one unit into one measured Outcome."""

    def __init__(self, name: str, make: Callable[[], Work], gpus: float = 0.0) -> None:
        self.name, self.make, self.gpus = name, make, gpus
        self.work: Work | None = None
        self.failure = ""

    def load(self) -> None:
        """Make the stage function; a failure is reported by the first attempt."""
        self.work, error = _caught(self.make)
        self.failure = "" if error is None else _describe(error)

    def attempt(self, unit: Unit, attempt: int) -> Outcome:
        """Do one unit. Errors: StageError when the stage did not load; DiskFullError, which is nobody's fault."""
        if self.work is None:
            raise StageError(f"Stage '{self.name}' cannot start: {self.failure}")
        work, (started, cpu) = self.work, _clock()
        with suppress(OSError):  # where the kernel allows it, restart the peak memory count
            Path("/proc/self/clear_refs").write_text("5")
        outcome, error = _caught(lambda: _checked(work(unit), unit))
        if outcome is None:
            assert error is not None
            outcome = Outcome(unit["unit"], "failed", message=_describe(error), error_class=type(error).__name__)
        ended, cpu_end = _clock()
        return replace(
            outcome,
            seconds=ended - started,
            cpu_seconds=cpu_end - cpu,
            gpu_seconds=(ended - started) * self.gpus,
            peak_mb=_peak_mb(),
            host=socket.gethostname(),
            attempt=attempt,
        )


def _checked(outcome: Outcome, unit: Unit) -> Outcome:
    if not isinstance(outcome, Outcome) or outcome.unit != unit["unit"]:
        raise TypeError(f"the stage returned {outcome!r} for the unit '{unit['unit']}'; expected an Outcome of it.")
    return replace(outcome, outputs=plain(outcome.outputs))  # as the ledger will give them back


def _caught(call: Callable[[], T]) -> tuple[T | None, Exception | None]:
    # The one broad except of the project: whatever a clip provokes becomes that clip's row.
    try:
        with disk_guard(Path.cwd()):
            return call(), None
    except DiskFullError:
        raise
    except Exception as error:
        logger.debug("caught", exc_info=True)
        return None, error


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" [{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}]" if trace else ""
    return text[:2000] + where


def _clock() -> tuple[float, float]:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return time.perf_counter(), sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mb() -> float:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the three kinds of worker


class Worker(Protocol):
    """One place that does one unit at a time; `loading` ends when the models are loaded or the worker died trying."""

    loading: Future[None]
    death: type[BaseException] | tuple[type[BaseException], ...]

    def submit(self, unit: Unit, attempt: int) -> Future[Outcome]:
        """Begin one unit."""

    def stop(self, now: bool) -> None:
        """End the worker, in the middle of a unit if `now`."""


class InProcessWorker:
    """The calling process itself."""

    death = ()

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.loading: Future[None] = Future()
        self.loading.set_result(runner.load())

    def submit(self, unit: Unit, attempt: int) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        future.set_result(self._runner.attempt(unit, attempt))
        return future

    def stop(self, now: bool) -> None:
        pass


class ProcessWorker:
    """A pool of exactly one spawned process."""

    death = BrokenProcessPool

    def __init__(self, runner: Runner) -> None:
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, initializer=_enter_process, initargs=(runner,))
        self.loading = self._pool.submit(_load)
        self._processes = set(multiprocessing.active_children()) - others

    def submit(self, unit: Unit, attempt: int) -> Future[Outcome]:
        return self._pool.submit(_attempt, unit, attempt)

    def stop(self, now: bool) -> None:
        if now:
            for process in self._processes:
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _enter_process(runner: Runner) -> None:
    global _runner
    _runner = runner
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the pool is the parallelism
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # Ctrl-C reaches the whole group: leave without a traceback
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A worker whose parent was killed would wait for ever, holding memory and devices.
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _load() -> None:
    _runner.load()


def _attempt(unit: Unit, attempt: int) -> Outcome:
    return _runner.attempt(unit, attempt)


class RayWorker:
    """A Ray actor."""

    def __init__(self, runner: Runner) -> None:
        import ray  # takes a second; only who asks for Ray pays

        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        self._kill = ray.kill
        actor = ray.remote(Runner).options(num_cpus=1, num_gpus=runner.gpus, max_restarts=0)
        self._actor = actor.remote(runner.name, runner.make, runner.gpus)
        self.loading: Future[None] = self._actor.load.remote().future()

    def submit(self, unit: Unit, attempt: int) -> Future[Outcome]:
        return self._actor.attempt.remote(unit, attempt).future()

    def stop(self, now: bool) -> None:
        self._kill(self._actor)


# ---- the crew


@dataclass
class Crew:
    """Workers of one kind; the idle ones wait here."""

    hire: Callable[[], Worker]
    workers: list[Worker] = field(default_factory=list)
    idle: list[Worker] = field(default_factory=list)

    def grow(self) -> None:
        """Take one more worker on."""
        worker = self.hire()
        self.workers.append(worker)
        self.idle.append(worker)

    def take_idle(self, wanted: int) -> list[Worker]:
        """Up to `wanted` idle workers, now busy."""
        taken, self.idle = self.idle[:wanted], self.idle[wanted:]
        return taken

    def give_back(self, worker: Worker) -> None:
        """The worker is idle again."""
        self.idle.append(worker)

    def replace(self, worker: Worker) -> None:
        """A dead worker makes room for a fresh one."""
        self.workers.remove(worker)
        worker.stop(now=True)
        self.grow()


@contextmanager
def _crew(stage: Stage, config: ExecutorConfig, units: int) -> Iterator[Crew]:
    count = config.workers or len(os.sched_getaffinity(0))
    kind: type[InProcessWorker] | type[ProcessWorker] | type[RayWorker]
    if config.kind == "ray":
        kind, count = RayWorker, _ray_capacity(config, count)
    else:
        kind = ProcessWorker if count > 1 else InProcessWorker
    gpus = config.gpus_per_worker if config.kind == "ray" else 0.0
    crew = Crew(lambda: kind(Runner(stage.name, stage.make, gpus)))
    finished = False
    try:
        for _ in range(min(count, units)):
            crew.grow()
        yield crew
        finished = True
    finally:
        for worker in crew.workers:
            worker.stop(now=not finished)


def _ray_capacity(config: ExecutorConfig, count: int) -> int:
    """Connect to Ray, quietly, and say how many workers it can hold: an actor too many would wait for ever."""
    for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"):
        os.environ.setdefault(name, "0")
    import ray

    if not ray.is_initialized():
        local = {"num_cpus": count, "include_dashboard": False} if config.ray_address == "local" else {}
        ray.init(
            address=config.ray_address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
            **local,
        )
    resources = ray.cluster_resources()
    wanted = count if config.workers else int(resources["CPU"])
    room = resources.get("GPU", 0) / config.gpus_per_worker if config.gpus_per_worker else wanted
    capacity = int(min(wanted, resources["CPU"], room))
    if capacity < 1:
        raise StageError(
            f"Ray at '{config.ray_address}' offers {resources}: no room for one worker; add nodes or GPUs."
        )
    return capacity
