"""The TensorBoard events are read back with TensorBoard's own reader."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.report import EVENTS, STEPS, Report, summary

QUIET = {"hfu": 0.5, "data_wait_share": 0.0, "peak_memory": 1e9, "skipped": 0, "bad": 0, "quarantined": 0}


def say(logs: Path, first: int, last: int, loss: float) -> Report:
    report = Report(logs, enabled=True, step=first - 1, total=last, done=first - 1)
    with report:
        for step in range(first, last + 1):
            numbers = {"step": step, "loss": loss + step, "tokens_per_s": 1234.5, "mfu": 0.4, "peak_source": "measured"}
            report.step(step, numbers | QUIET)
    return report


def events(logs: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(logs / EVENTS)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def test_events_say_what_the_lines_say(tmp_path: Path) -> None:
    say(tmp_path, 1, 3, loss=10)
    assert events(tmp_path, "train/loss") == [(1, 11.0), (2, 12.0), (3, 13.0)]
    names = EventAccumulator(str(tmp_path / EVENTS)).Reload().Tags()["scalars"]
    assert names == ["train/loss", "train/tokens_per_s", "train/mfu", *(f"train/{name}" for name in QUIET)]
    lines = [json.loads(line) for line in (tmp_path / STEPS).read_text().splitlines()]
    assert [line["loss"] for line in lines] == [11, 12, 13]
    assert lines[0]["peak_source"] == "measured"


def test_steps_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    say(tmp_path, 1, 4, loss=10)
    say(tmp_path, 3, 5, loss=20)
    assert events(tmp_path, "train/loss") == [(1, 11.0), (2, 12.0), (3, 23.0), (4, 24.0), (5, 25.0)]


def test_flushed_events_are_there_before_the_end(tmp_path: Path) -> None:
    report = Report(tmp_path, enabled=True, step=0, total=9, done=0)
    with report:
        report.step(1, {"step": 1, "loss": 0.5, "tokens_per_s": 1.0, "mfu": 0.1} | QUIET)
        report.flush()
        assert events(tmp_path, "train/loss") == [(1, 0.5)]


def test_a_silent_rank_and_a_finished_training_write_nothing(tmp_path: Path) -> None:
    with Report(tmp_path / "silent", enabled=False, step=0, total=9, done=0) as silent:
        silent.step(1, {"step": 1, "loss": 0.5})
        silent.flush()
    with Report(tmp_path / "finished", enabled=True, step=9, total=9, done=9) as finished:
        finished.flush()
    assert list(tmp_path.iterdir()) == []


def test_the_bar_shows_loss_speed_utilisation_memory_and_what_went_wrong() -> None:
    numbers = {"loss": 0.12341, "tokens_per_s": 12_345.6, "mfu": 0.4321, "hfu": 0.5, "data_wait_share": 0.012}
    numbers |= {"peak_memory": 36.2e9, "skipped": 0, "bad": 0, "quarantined": 0}
    said = "loss 0.1234, 12,346 tokens/s, MFU 43.2 %, HFU 50.0 %, waiting 1.2 %, 36.2 GB"
    assert summary(numbers) == said
    assert summary(numbers | {"skipped": 3, "quarantined": 1}) == said + ", 3 skipped, 1 quarantined"
