import os
import signal
import threading
from collections.abc import Iterator

import pytest

from common.process import signals
from common.process.signals import STOP_SIGNALS, Stopped, exit_reason, keep_handlers, stop_signals, stop_that_came


@pytest.fixture(autouse=True)
def no_signal_is_ignored() -> Iterator[None]:
    """As in a terminal: `nohup` and a shell's background jobs ignore some, which `stop_signals` respects."""
    before = {each: signal.signal(each, signal.SIG_DFL) for each in STOP_SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_raises_the_same_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in STOP_SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, stop_signals():
        os.kill(os.getpid(), number)
    assert isinstance(caught.value, Stopped) and caught.value.name == number.name
    assert stop_that_came() is caught.value
    assert [signal.getsignal(each) for each in STOP_SIGNALS] == before


def test_a_second_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with pytest.raises(Stopped), stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            with stop_signals(), pytest.raises(Stopped):  # also in a context inside, as a launcher's
                os.kill(os.getpid(), signal.SIGTERM)
    assert ended == [75]


def test_a_signal_that_the_parent_wants_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_of_a_library_do_not_stay() -> None:
    with stop_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with keep_handlers():
            signal.signal(signal.SIGTERM, lambda *_: None)
        assert signal.getsignal(signal.SIGTERM) is ours


def test_other_threads_are_left_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stop_signals(), keep_handlers():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("code", "more_kills", "reason"),
    [
        (-9, 0, "was killed by signal SIGKILL"),
        (-9, 1, "was killed by the kernel because memory ran out"),
        (-15, 1, "was killed by signal SIGTERM"),
        (-2, 0, "was killed by signal SIGINT"),
        (-11, 0, "was killed by signal SIGSEGV"),
        (-40, 0, "was killed by signal 40"),
        (3, 0, "ended with exit code 3"),
        (None, 0, "was lost"),
    ],
)
def test_memory_is_named_only_where_the_kernel_has_counted_it(
    code: int | None, more_kills: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "oom_kills", lambda: 4 + more_kills)
    assert exit_reason(code, 4) == reason


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/job", "/sys/fs/cgroup/job/memory.events"),
        ("8:memory:/job", "/sys/fs/cgroup/memory/job/memory.oom_control"),
    ],
)
def test_the_counter_is_that_of_the_own_control_group(line: str, file: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "cgroup").write_text(f"9:cpu:/x\n{line}\n")
    monkeypatch.setattr(signals, "CGROUP", tmp_path / "cgroup")
    assert str(signals._memory_files()[0]) == file
