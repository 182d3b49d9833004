"""Training loops: killed and gone on with they end with the same numbers; another training's state is not taken."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audioavatar.driven import training
from audioavatar.driven.training import Checkpoint, TrainingSteps
from common.progress import MetricLog


class Killed(Exception):
    """Stands for the end of the process."""


def train(checkpoint: Checkpoint | None, steps: int = 8, stop: int = -1) -> tuple[Tensor, list[float]]:
    """A net that learns from both kinds of random numbers; it dies in the step `stop`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net, random, history = nn.Linear(2, 1), torch.Generator().manual_seed(4), list[float]()
        optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, total_steps=steps)
        parts = {"net": net, "optimiser": optimiser, "schedule": schedule, "random": random, "history": history}
        loop = TrainingSteps("train", steps, checkpoint, **parts)
        for step in loop:
            if step == stop:
                raise Killed
            loss = (net(torch.randn(4, 2)) - torch.randn(4, 1, generator=random)).square().mean()
            loop.report(loss=loss)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            history.append(float(loss.detach()))
    return torch.cat([value.detach().flatten() for value in net.parameters()]), history


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    return Checkpoint(tmp_path / ".net.checkpoint", "these clips", "train", MetricLog(tmp_path / "log.jsonl"))


def test_a_killed_training_goes_on_where_it_was_to_the_same_numbers(checkpoint: Checkpoint) -> None:
    whole, history = train(None)
    with pytest.raises(Killed):
        train(checkpoint, stop=5)
    assert checkpoint.read()["step"] == 5
    again, all_of_it = train(checkpoint)
    assert torch.equal(again, whole) and all_of_it == history
    rows = checkpoint.log.rows()
    assert [row["step"] for row in rows] == [0, 7] and {row["stage"] for row in rows} == {"train losses"}
    assert rows[-1]["loss"] == pytest.approx(history[-1], abs=1e-5)


def test_the_state_of_a_training_on_other_clips_is_not_taken(checkpoint: Checkpoint) -> None:
    with pytest.raises(Killed):
        train(checkpoint, stop=5)
    other = Checkpoint(checkpoint.path, "other clips", "train", checkpoint.log)
    assert other.read() == {} and torch.equal(train(other)[0], train(None)[0])
    checkpoint.remove()
    assert not checkpoint.path.exists() and checkpoint.read() == {}
