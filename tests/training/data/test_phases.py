import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.recipe import dump_recipe, load_recipe
from common.runs import RunFolder
from tests.training.data.test_windows import clips_of_step
from training.config import (
    DataConfig,
    ObjectiveConfig,
    OptimizerConfig,
    Phase,
    TrainConfig,
    ValidationConfig,
    check_phases,
)
from training.data.phases import after_validation, in_phase, next_phase, phase_number
from training.engine.zero import join_group
from training.state import TrainState
from training.train import Trainer, train

SMALL = Phase("480p", steps=3, longest_side=832, durations=(5, 13), first_reference=1.0, lr=1e-4)
MIXED = Phase("mixed", audio_dropout=0.2)


def test_a_phase_changes_what_it_names_and_nothing_else() -> None:
    data, objective, optimizer = DataConfig(max_tokens=9_000, longest_side=1280), ObjectiveConfig(), OptimizerConfig()
    assert in_phase(data, SMALL) == replace(data, longest_side=832, durations=(5, 13))
    assert in_phase(objective, SMALL) == replace(objective, first_reference=1.0)
    assert in_phase(optimizer, SMALL) == replace(optimizer, lr=1e-4)
    assert in_phase(data, MIXED) == data
    assert in_phase(objective, MIXED) == replace(objective, audio_dropout=0.2)
    assert in_phase(objective, Phase("no dropout", text_dropout=0.0)).text_dropout == 0


def test_a_phase_is_over_after_its_steps() -> None:
    phases, state = (SMALL, Phase("middle", steps=2), MIXED), TrainState()
    numbers = []
    for step in range(1, 9):
        state = next_phase(replace(state, step=step), phases)
        numbers.append(phase_number(state))
    assert numbers == [0, 0, 1, 1, 2, 2, 2, 2]
    assert state.phase_starts == (0, 3, 5)


def test_a_phase_is_over_when_its_held_out_loss_stopped_falling() -> None:
    phases = (Phase("480p", patience=2), Phase("mixed", patience=1))
    state = TrainState()
    told = []
    for step, loss in enumerate([0.9, 0.8, 0.85, 0.7, 0.75, 0.7, 0.95, 0.9, 0.91], 1):
        state = next_phase(after_validation(replace(state, step=step), loss), phases)
        told.append((phase_number(state), state.phase_stale))
    # The seventh loss is judged in a phase of its own; the last phase lasts, whatever its patience.
    assert told == [(0, 0), (0, 0), (0, 1), (0, 0), (0, 1), (1, 0), (1, 0), (1, 0), (1, 1)]
    assert state.phase_starts == (0, 6)


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ((Phase("a"), Phase("b")), "'a' has no end"),
        ((Phase("a", steps=1), Phase("a")), "two phases are named 'a'"),
        ((Phase("a", patience=2), Phase("b")), "set validation.every"),
        ((Phase("a", steps=-1),), "steps -1"),
    ],
)
def test_phases_that_would_never_end_are_refused(phases: tuple[Phase, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainConfig(phases=phases)
    check_phases((SMALL, MIXED), validates=False)


def test_phases_are_a_part_of_the_recipe(tmp_path: Path) -> None:
    config = TrainConfig(phases=(SMALL, MIXED))
    (tmp_path / "train.yaml").write_text(dump_recipe(config))
    assert load_recipe(tmp_path / "train.yaml", TrainConfig) == config


def result_of(run: RunFolder) -> tuple[list[tuple[str, float, float]], dict[str, torch.Tensor]]:
    """Phase, loss and rate of each step, and the exported weights."""
    rows = [json.loads(line) for line in (run.logs / "train.jsonl").read_text().splitlines()]
    weights = torch.load(run.checkpoints / "adapter" / "pytorch_model.pt", weights_only=True)
    return [(row["phase"], row["loss"], row["lr"]) for row in rows if row["step"]], weights


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("uninterrupted"))


@pytest.mark.parametrize("stops", [(3,), (4,), (2, 5)])
def test_a_training_of_two_phases_is_resumed_exactly_at_their_border_and_beside_it(
    config: TrainConfig, uninterrupted: RunFolder, run: RunFolder, mixed_shards: Path, stops: tuple[int, ...]
) -> None:
    first = Phase("short", steps=3, durations=(3,), first_reference=1.0, lr=1e-3)
    config = replace(config, shards=mixed_shards, phases=(first, Phase("whole")), steps=6)
    train(uninterrupted, config)
    for stop in (*stops, config.steps):
        train(run, replace(config, steps=stop))
    (steps, weights), (expected, expected_weights) = result_of(run), result_of(uninterrupted)
    assert steps == expected
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)
    assert [phase for phase, _, _ in steps] == ["short"] * 3 + ["whole"] * 3
    assert [lr for *_, lr in steps] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-2, 1e-2, 1e-2])
    told = json.loads((run.logs / "data.json").read_text())
    assert (told["short"]["cut_by_length"], told["whole"]["cut_by_length"]) == (9 * 2 + 7 * 6, 0)
    assert told["whole"]["imbalance"] == 1.0


def test_a_phase_begins_its_own_order_and_draws_by_its_own_rates(
    config: TrainConfig, run: RunFolder, mixed_shards: Path
) -> None:
    join_group(threads=1)
    phases = (Phase("silent", steps=3, text_dropout=1.0), Phase("read", text_dropout=0.0))
    trainer = Trainer(run, replace(config, shards=mixed_shards, phases=phases))
    for starts in ((0,), (0, 3)):
        trainer.state = replace(trainer.state, step=starts[-1], phase_starts=starts)
        (micro, *_), own = next(trainer.enter_phase()), trainer.windows
        assert micro.positions[0] // config.data.batch in [2 * starts[-1], 2 * starts[-1] + 1]
        assert [sample.clip_id for sample in micro.samples] == clips_of_step(own, starts[-1])[: len(micro.samples)]
        assert own.start == starts[-1]
        assert own.epoch_of(starts[-1]) == 0 and own.order.phase == len(starts) - 1
        losses = trainer.losses(micro)
        trainer.phase = phases[2 - len(starts)]
        assert not torch.equal(trainer.losses(micro), losses)


def test_a_plateau_hands_over_and_the_log_goes_on(config: TrainConfig, run: RunFolder) -> None:
    still = replace(config.optimizer, lr=0.0)  # nothing is learnt, so no held-out loss is lower than the first
    phases = (Phase("first", patience=2), Phase("second"))
    train(run, replace(config, optimizer=still, phases=phases, validation=ValidationConfig(every=1, samples=2)))
    assert [phase for phase, _, _ in result_of(run)[0]] == ["first"] * 3 + ["second"]
