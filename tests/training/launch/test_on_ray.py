"""Ray Train against the calling process, on a real local Ray."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from common.executors.config import ExecutorConfig
from common.runs import RunFolder
from training.config import TrainConfig
from training.launch.local import TrainingFailedError
from training.launch.on_ray import launch_on_ray
from training.train import train

RAY = ExecutorConfig("ray", cpus_per_worker=0.9)


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    yield
    import ray  # not before the launcher has asked it to be quiet

    ray.shutdown()


def adapter_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)


def test_a_worker_of_ray_trains_what_this_process_trains_and_goes_on(config: TrainConfig, run: RunFolder) -> None:
    train(alone := RunFolder(run.root.with_name("alone")), config)
    train(run, replace(config, steps=2))
    launch_on_ray(run, config, 1, RAY)
    expected, trained = adapter_of(alone), adapter_of(run)
    assert all(torch.equal(trained[name], value) for name, value in expected.items())
    assert len((run.logs / "train.jsonl").read_text().splitlines()) == 4
    with pytest.raises(TrainingFailedError, match="Ray offers 1 CPU, 9 ranks need 8.1"):
        launch_on_ray(run, config, 9, RAY)
