"""Launcher of a training on a Ray cluster: Ray Train places the ranks and restarts them together when one is lost.

The run folder must be on storage that every machine mounts. Training resumes from our own checkpoints there, so Ray
keeps none.
"""

import logging
import os
from contextlib import suppress
from dataclasses import replace
from multiprocessing import TimeoutError
from multiprocessing.pool import ThreadPool
from pathlib import Path

from common.executors.config import ExecutorConfig
from common.executors.ray_connect import connect_ray
from common.process.signals import Stopped
from common.recipe import dump_recipe, load_recipe
from common.runs import RunFolder, atomic_write
from training.config import TrainConfig
from training.launch.local import TrainingFailedError, describe_failure, saved_sentence
from training.launch.rank import failure_file, report_failure, stop_file, stop_with_launcher
from training.train import train

logger = logging.getLogger(__name__)
OWN_FAILURE = 1


def launch_on_ray(run: RunFolder, config: TrainConfig, ranks: int, executor: ExecutorConfig) -> None:
    """Train `config` in `ranks` workers on the Ray of `executor` and return when they are done; call again to resume.

    Each worker reserves the executor's CPUs and GPUs. After a failure all restart from the last checkpoint, at most
    `fault_tolerance.restarts` times. Raises StageError when the cluster cannot be joined, TrainingFailedError.
    """
    run = RunFolder(run.root.resolve())
    with atomic_write(run.root / "train.yaml") as path:
        path.write_text(dump_recipe(config))
    connect_ray(replace(executor, workers=ranks))
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train import TrainingFailedError as GroupLostError
    from ray.train.torch import TorchConfig, TorchTrainer

    needs = {"CPU": executor.cpus_per_worker, "GPU": executor.gpus_per_worker}
    offered = ray.cluster_resources()
    for name, need in needs.items():
        if offered.get(name, 0.0) < ranks * need:
            raise TrainingFailedError(
                f"Ray offers {offered.get(name, 0.0):g} {name}, {ranks} ranks need {ranks * need:g}; add nodes or "
                f"lower ranks or executor.{name.lower()}s_per_worker"
            )
    for rank in range(ranks):
        failure_file(run, rank).unlink(missing_ok=True)
    stop_file(run).unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"run": str(run.root), "home": str(Path.cwd())},
        torch_config=TorchConfig(backend="nccl" if executor.gpus_per_worker else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=executor.gpus_per_worker > 0, resources_per_worker=_reserved(needs)
        ),
        run_config=RunConfig(
            storage_path=str(run.logs / "ray"),
            failure_config=FailureConfig(max_failures=config.fault_tolerance.restarts),
        ),
    )
    logger.info("Ray trains with %d ranks; logs are in %s", ranks, run.logs)
    # In a (daemon) thread of its own Ray Train leaves Ctrl-C alone; on the main thread it would end with code 0.
    fit = ThreadPool(1).apply_async(trainer.fit)
    try:
        fit.get()
    except Stopped as stop:
        stop_file(run).touch()
        with suppress(TimeoutError, GroupLostError):
            fit.get(config.fault_tolerance.save_seconds)
        stop.add_note(saved_sentence(run))
        raise
    except GroupLostError as error:
        failed = [rank for rank in range(ranks) if failure_file(run, rank).exists()]
        first = min(failed, key=lambda rank: failure_file(run, rank).stat().st_mtime, default=None)
        message = str(error).strip().splitlines()[-1] if first is None else describe_failure(run, first, OWN_FAILURE)
        raise TrainingFailedError(message) from error


def train_on_worker(settings: dict[str, str]) -> None:
    """Entry point on each Ray worker; relative paths of the recipe start from the launcher's working directory."""
    os.chdir(settings["home"])
    run = RunFolder(Path(settings["run"]))
    stop_with_launcher(run)
    try:
        train(run, load_recipe(run.root / "train.yaml", TrainConfig))
    except (ValueError, FileNotFoundError, RuntimeError) as error:
        report_failure(run, error)
        raise


def _reserved(needs: dict[str, float]) -> dict[str, float]:
    return {name: need for name, need in needs.items() if need > 0}
