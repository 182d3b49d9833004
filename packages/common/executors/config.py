"""Configuration of the executors: the recipe's `executor` section."""

from dataclasses import dataclass
from typing import Literal

from common.errors import InputError
from common.ranges import Positive


@dataclass(frozen=True)
class ExecutorConfig:
    """Where and how stages run. `workers`: 0 = all cores (of this machine, or of the Ray cluster).

    "process" with one worker runs in the calling process, with more on spawned processes. `ray_address`: "local"
    starts a private Ray on this machine, "auto" joins the cluster this machine belongs to; any other value is passed to
    `ray.init`. `cpus_per_worker` and `gpus_per_worker` (Ray only, for stages with networks, whose workers then reserve
    no core) may be fractions.

    A unit that fails is retried up to `retry_failed` times, one whose worker crashes up to `retry_crashes` times; the
    latter is then quarantined. Later runs skip both, unless `retry` grants them a fresh set of attempts.

    `exchange`: an address on object storage (that of the mirror, say) by which workers on machines that share no run
    folder hand each other the files of a flow; empty: all see the same folder, at the same path.

    `stop_seconds`: how long a run that gets SIGTERM waits for the units in hand before it ends.
    """

    kind: Literal["process", "ray"] = "process"
    workers: int = 0
    ray_address: str = "local"
    cpus_per_worker: Positive = 1.0
    gpus_per_worker: float = 0.0
    retry_failed: int = 2
    retry_crashes: int = 2
    retry: bool = False
    stop_seconds: Positive = 20.0
    exchange: str = ""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InputError(f"workers is {self.workers}: expected 0 (all cores) or a positive number.")
