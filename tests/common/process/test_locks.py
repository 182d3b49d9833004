"""Lock of a run folder: who is refused and what they are told, what a killed holder leaves, who is let through."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from common.process.locks import LOCK, LOST_SECONDS, RunHeldError, hold_run
from common.runs import HOST, atomic_write, is_leftover, temporary_beside

HOLD = """
import os, sys
from pathlib import Path
from common.process.locks import hold_run
with hold_run(Path(sys.argv[1]), "omniavatar curate"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(run: Path) -> subprocess.Popen[str]:
    """Another process that holds the run until its input ends."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", HOLD, str(run)]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def write_entry(run: Path, host: str) -> None:
    (run / LOCK).write_text(json.dumps({"command": "omniavatar train", "pid": 7, "host": host, "since": "noon"}))


def test_the_second_writer_is_told_who_holds_the_run_and_a_killed_one_blocks_nobody(tmp_path: Path) -> None:
    first = holder(tmp_path)
    words = rf"{tmp_path}.* omniavatar curate \(process {first.pid} on {socket.gethostname()}, since 20.*\); wait until"
    with pytest.raises(RunHeldError, match=words), hold_run(tmp_path, "omniavatar reselect"):
        pass
    torn = tmp_path / "report" / f".page.{HOST}-{first.pid}-0123ab.tmp.html"
    torn.parent.mkdir()
    torn.write_text("half")
    mine = temporary_beside(tmp_path / "a.json")
    mine.write_text("being written")
    first.kill()
    first.wait()
    assert (tmp_path / LOCK).exists()
    with hold_run(tmp_path, "omniavatar reselect"):
        assert not torn.exists() and mine.exists()
    assert [path.name for path in tmp_path.iterdir() if path != mine] == ["report"]


def test_steps_of_a_command_may_hold_what_it_holds(tmp_path: Path) -> None:
    with hold_run(tmp_path, "omniavatar run"):
        with hold_run(tmp_path, "omniavatar curate"):
            pass
        child = holder(tmp_path)
        child.communicate("")
        assert child.returncode == 0 and (tmp_path / LOCK).exists()
        with hold_run(tmp_path / "other", "omniavatar sweep"):
            pass
    assert not (tmp_path / LOCK).exists()
    first = holder(tmp_path)
    with pytest.raises(RunHeldError), hold_run(tmp_path, "omniavatar curate"):
        pass
    first.communicate("")
    with hold_run(tmp_path, "omniavatar curate"):
        pass


def test_an_environment_of_a_dead_holder_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = holder(tmp_path)
    monkeypatch.setenv("OMNIAVATAR_HELD", f"1:{tmp_path / LOCK}")
    with pytest.raises(RunHeldError), hold_run(tmp_path, "omniavatar curate"):
        pass
    first.communicate("")


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with hold_run(tmp_path, "omniavatar run"):
        child = context.Process(target=time.sleep, args=(60,))
        child.start()
    try:
        with hold_run(tmp_path, "omniavatar run"):
            pass
    finally:
        child.kill()
        child.join()


def test_another_host_holds_as_long_as_it_is_heard_of(tmp_path: Path) -> None:
    write_entry(tmp_path, "elsewhere")
    with (
        pytest.raises(RunHeldError, match="process 7 on elsewhere.*another host.*try again in"),
        hold_run(tmp_path, "x"),
    ):
        pass
    silent = time.time() - LOST_SECONDS - 1
    os.utime(tmp_path / LOCK, (silent, silent))
    with hold_run(tmp_path, "x"):
        assert json.loads((tmp_path / LOCK).read_text())["command"] == "x"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_entry_is_no_holder(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with hold_run(tmp_path, "x"):
        pass


def test_an_error_of_the_command_ends_the_hold(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold_run(tmp_path, "x"):
        raise KeyError
    assert "OMNIAVATAR_HELD" not in os.environ or not os.environ["OMNIAVATAR_HELD"]
    with hold_run(tmp_path, "x"):
        pass


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    target, both = tmp_path / ("n" * 200 + ".txt"), threading.Barrier(2)

    def write(letter: str) -> None:
        with atomic_write(target) as temporary, open(temporary, "w") as file:
            both.wait()
            for _ in range(100):
                file.write(letter * 1000)
                file.flush()
            both.wait()

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert target.read_text() in ("a" * 100_000, "b" * 100_000) and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "left"),
    [
        (f".a.{HOST}-{2**22 + 1}-0123ab.tmp.parquet", True),  # above the highest process id
        (f".a.b.{HOST}-{2**22 + 1}-0123ab.unsorted", True),
        (f".a.{HOST}-PID-0123ab.tmp.parquet", False),  # of a process that lives
        (".a.00000000-1-0123ab.tmp.mp4", False),  # of another host, just now
        (".notes.tmp", False),
        ("a.tmp.parquet", False),
    ],
)
def test_what_counts_as_a_leftover(name: str, left: bool, tmp_path: Path) -> None:
    name = name.replace("PID", str(os.getpid()))
    (tmp_path / name).touch()
    assert is_leftover(tmp_path / name) == left
    with atomic_write(tmp_path / "b.json") as temporary:
        temporary.touch()
    assert (tmp_path / name).exists() != left


def test_files_follow_the_umask_whatever_wrote_them(tmp_path: Path) -> None:
    expected = tmp_path / "plain"
    expected.touch()
    with atomic_write(tmp_path / "w.safetensors") as temporary:
        temporary.touch(0o600)
    assert (tmp_path / "w.safetensors").stat().st_mode == expected.stat().st_mode
