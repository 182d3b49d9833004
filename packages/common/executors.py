"""One stage, many units: in this process, on a pool of processes or on Ray, with the same results in the same order.

A unit whose worker dies is tried again on a fresh worker; the others never notice. Only rows travel; pixels stay in
files. This is the one file that knows Ray.
"""

import logging
import os
import resource
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from common.ledger import Key, Ledger, Outcome
from common.progress import ProgressBar, progress
from common.runs import DiskFullError, disk_guard, fingerprint, plain
from common.workers import Crew, InProcessWorker, ProcessWorker, Unit, Worker

logger = logging.getLogger(__name__)
Work = Callable[[Unit], Outcome]
T = TypeVar("T")
OBJECT_STORE_BYTES = 100 * 2**20  # rows are small
QUIET_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed",  # it becomes a ledger row
}


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
        bar: ProgressBar[Unit] = progress(len(rows), stage.name)
        # Closed by name: workers end with the run even while a traceback still holds the generator.
        with bar, closing(_attempts(stage, rows, outcomes, todo, executor)) as results:
            bar.update(len(rows) - len(todo))
            states = Counter(outcome.state for outcome in outcomes if outcome and _settled(outcome, retry_failed))
            for index, outcome in results:
                outcomes[index] = outcome
                log.append(keys[index], outcome)
                if outcome.state == "failed" and not _settled(outcome, retry_failed):
                    todo.append(index)
                else:
                    states[outcome.state] += 1
                    bar.update(1, ", ".join(f"{state} {count}" for state, count in sorted(states.items())))
        log.compact()
    return [outcome for outcome in outcomes if outcome is not None]


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
) -> Generator[tuple[int, Outcome], None, None]:
    """Attempt each row named in `todo`, which the caller may extend between two results; results come as they end."""
    if not todo:
        return  # nothing to do starts nothing
    running: dict[Future[Outcome], tuple[Worker, int]] = {}
    with _crew(stage, config, len(todo)) as crew:
        while todo or running:
            for worker in crew.take_idle(len(todo)):
                index = todo.popleft()
                running[worker.submit(rows[index], _next_attempt(outcomes[index]))] = worker, index
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                worker, index = running.pop(future)
                died = _died(stage, crew, worker, future)
                if died:
                    crew.replace(worker)
                else:
                    crew.give_back(worker)
                yield index, _death(rows[index]["unit"], _next_attempt(outcomes[index])) if died else future.result()


def _died(stage: Stage, crew: Crew, worker: Worker, future: Future[Outcome]) -> bool:
    """Whether the unit took its worker along; raises what is wrong with more than the unit."""
    error = future.exception()
    if error is None:
        return False
    if not isinstance(error, worker.death):
        raise getattr(error, "cause", error)  # Ray wraps what was raised
    if not crew.proven and worker.loading.exception():
        raise StageError(f"Stage '{stage.name}' cannot start: its worker died loading its models; is memory enough?")
    return True


def _death(unit: str, attempt: int) -> Outcome:
    message = "The worker process died on this unit (killed, out of memory, or a crash in a library)."
    return Outcome(
        unit, "failed", message=message, error_class="WorkerDied", attempt=attempt, host=socket.gethostname()
    )


class Runner:
    """Holds the loaded stage inside a worker and turns one unit into one measured Outcome."""

    def __init__(self, name: str, make: Callable[[], Work], gpus: float = 0.0) -> None:
        self.name, self.make, self.gpus = name, make, gpus
        self.work: Work | None = None
        self.failure = "its models did not load."

    def load(self) -> None:
        """Make the stage function; a failure is reported by the first attempt."""
        self.work, error = _caught(self.make)
        self.failure = _describe(error) if error else ""

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


def _caught(call: Callable[[], T]) -> tuple[T | None, BaseException | None]:
    # The one broad except of the project: whatever a clip provokes becomes that clip's row.
    try:
        with disk_guard():
            return call(), None
    except DiskFullError:
        raise
    except (Exception, SystemExit) as error:  # some libraries exit where they should raise
        logger.debug("caught", exc_info=True)
        return None, error


def _describe(error: BaseException) -> str:
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


class RayWorker:
    """A Ray actor."""

    def __init__(self, runner: Runner) -> None:
        import ray

        self.death = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
        self._kill = ray.kill
        actor: Any = ray.remote(Runner).options(num_cpus=1, num_gpus=runner.gpus, max_restarts=0)
        self._actor: Any = actor.remote(runner.name, runner.make, runner.gpus)
        self.loading: Future[None] = self._actor.load.remote().future()

    def submit(self, unit: Unit, attempt: int) -> "Future[Outcome]":
        """Begin one unit in the actor."""
        future: Future[Outcome] = self._actor.attempt.remote(unit, attempt).future()
        return future

    def stop(self, now: bool) -> None:
        """End the actor."""
        self._kill(self._actor)


@contextmanager
def _crew(stage: Stage, config: ExecutorConfig, units: int) -> Iterator[Crew]:
    count = config.workers or len(os.sched_getaffinity(0))
    crew = Crew(lambda: (ProcessWorker if count > 1 else InProcessWorker)(Runner(stage.name, stage.make)))
    if config.kind == "ray":
        count = _ray_capacity(config, count)
        crew = Crew(lambda: RayWorker(Runner(stage.name, stage.make, config.gpus_per_worker)))
    finished = False
    try:
        for _ in range(min(count, units)):
            crew.grow()
        yield crew
        finished = True
    finally:
        crew.disband(now=not finished)


def _ray_capacity(config: ExecutorConfig, count: int) -> int:
    """Connect to Ray, quietly, and say how many workers it can hold: an actor too many would wait for ever."""
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray  # takes a second; only who asks for Ray pays

    if not ray.is_initialized():
        search = os.pathsep.join(filter(None, sys.path))  # workers look for modules where we do
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if config.ray_address == "local":
            # A private Ray inherits the environment; for a cluster it has to be shipped, which is slower.
            quiet |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            with _environment("PYTHONPATH", search):
                ray.init(address="local", num_cpus=count, **quiet)
        else:
            ray.init(address=config.ray_address, runtime_env={"env_vars": {"PYTHONPATH": search}}, **quiet)
    resources = ray.cluster_resources()
    wanted = count if config.workers else int(resources["CPU"])
    room = resources.get("GPU", 0) / config.gpus_per_worker if config.gpus_per_worker else wanted
    capacity = int(min(wanted, resources["CPU"], room))
    if capacity < 1:
        raise StageError(
            f"Ray at '{config.ray_address}' offers {resources}: no room for one worker; add nodes or GPUs."
        )
    return capacity


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
