import io
import logging
import sys
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from common import progress as module
from common.progress import MetricLog, progress, setup_logging


class Clock:
    """Stands in for the time module: time passes when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_at_most_a_line_in_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    with progress(100, "train") as bar:
        for step in range(100):
            clock.now += 0.5
            bar.update(note=f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "train: 20/100 in 10.0 s (40 s left) loss 19",
        "train: 40/100 in 20.0 s (30 s left) loss 39",
        "train: 60/100 in 30.0 s (20 s left) loss 59",
        "train: 80/100 in 40.0 s (10 s left) loss 79",
        "train: 100/100 in 50.0 s loss 99",
    ]


def test_iterable_passes_through_with_one_closing_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert [x * 2 for x in progress([1, 2, 3], "shots")] == [2, 4, 6]
    assert list(progress((x for x in "ab"), "unknown length")) == ["a", "b"]
    text = capsys.readouterr()
    assert text.out == "" and text.err.splitlines() == ["shots: 3/3 in 0.0 s", "unknown length: 2 in 0.0 s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nested_bars_share_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "_console", Console(stderr=True))
    for _ in progress(range(3), "outer"):
        for _ in progress(range(2), "inner"):
            time.sleep(0.1)  # a display is drawn ten times a second
    final = terminal.getvalue().rpartition("outer")[2]
    assert "inner" in terminal.getvalue() and "3/3" in final and "inner" not in final  # inner bars make room
    list(progress([1], "later"))  # the display was taken down and comes back
    assert "later" in terminal.getvalue()


@pytest.mark.parametrize("verbose", [False, True])
def test_logging_lets_our_words_through_and_not_other_peoples(verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root_logger = logging.getLogger()
    before, level, stream = root_logger.handlers[:], root_logger.level, io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    # A test before this one in the same process may have set logging up: pytest takes its hook on warnings away again,
    # logging believes it is still there and would not set it a second time.
    logging.captureWarnings(False)
    try:
        setup_logging(verbose)
        logging.getLogger("curation.job").info("ours")
        logging.getLogger("curation.job").debug("detail")
        # Not a library of ours by name: some of those bring a handler of their own once they are imported.
        logging.getLogger("other.library").info("chatter")
        logging.getLogger("other.library").warning("serious")
        warnings.warn("deprecated", stacklevel=1)
    finally:
        root_logger.handlers[:] = before
        root_logger.setLevel(level)
        logging.captureWarnings(False)
    text = stream.getvalue()
    assert "ours" in text and "serious" in text and "chatter" not in text
    assert "deprecated" in text and ("detail" in text) == verbose


def test_metric_log_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    log = MetricLog(tmp_path / "train.jsonl")
    for step in range(1, 6):
        log.write(step=step, loss=1.0 / step)
    log.close()
    path = tmp_path / "train.jsonl"
    path.write_bytes(path.read_bytes()[:-3])  # killed while writing step 5
    again = MetricLog(path)
    assert [row["step"] for row in again.rows()] == [1, 2, 3, 4]
    again.truncate(step=3)
    again.write(step=4, loss=0.5)
    assert [(row["step"], row["loss"]) for row in again.rows()][2:] == [(3, 1 / 3), (4, 0.5)]
    MetricLog(tmp_path / "absent.jsonl").truncate(step=3)
