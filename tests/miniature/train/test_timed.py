import json

import pytest
import torch
from torch import nn

from miniature.train.timed import TimedTraining


def _training(out, minutes):
    torch.manual_seed(0)
    module = nn.Linear(4, 1)
    return module, TimedTraining(module, torch.optim.Adam(module.parameters(), lr=0.02), out, minutes)


def _run(training, module, rounds):
    for number, _ in enumerate(training):
        if number == rounds:
            break
        x = torch.randn(32, 4)
        training.update((module(x) - x.sum(1, keepdim=True)).square().mean())


def test_it_learns_and_stops_when_the_time_is_up(tmp_path):
    module, training = _training(tmp_path / "model", 0.02)
    for progress in training:
        assert 0 <= progress < 1
        x = torch.randn(32, 4)
        training.update((module(x) - x.sum(1, keepdim=True)).square().mean())
    assert 1.2 <= training.seconds < 5
    assert torch.allclose(module.weight, torch.ones(1, 4), atol=0.1)


def test_a_killed_training_goes_on_with_weights_optimizer_and_clock(tmp_path):
    module, training = _training(tmp_path / "model", 10)
    _run(training, module, 30)
    training.save()
    again, resumed = _training(tmp_path / "model", 10)
    assert resumed.step == 30 and resumed.seconds == training.seconds > 0
    assert torch.equal(again.weight, module.weight)
    assert resumed.optimizer.state_dict()["state"][0]["step"] == 30


def test_rate_warms_up_then_falls_to_three_percent(tmp_path):
    module, training = _training(tmp_path / "model", 10)
    rates = {}
    for share in (0.0, 0.4, 0.75, 0.999):
        training.seconds, training.step = share * 600, 200
        next(iter(training))
        rates[share] = training.optimizer.param_groups[0]["lr"] / 0.02
    assert rates[0.0] == rates[0.4] == 1 and rates[0.75] == pytest.approx(0.515) and rates[0.999] < 0.04


def test_numbers_are_json_lines(tmp_path):
    _, training = _training(tmp_path / "model", 1)
    training.record(loss=0.5)
    (line,) = (tmp_path / "model.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 0, "minutes": 0.0, "loss": 0.5}
