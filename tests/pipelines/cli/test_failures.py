import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import InputError
from common.process.signals import Stopped
from pipelines.cli.failures import BUG_EXIT, prepare_streams
from tests.pipelines.command_line import run_here


@pytest.fixture
def failing(monkeypatch, tmp_path):
    """Makes `omniavatar status --run RUN` raise an error; returns how the command ended."""

    def run(error):
        def status_lines(root):
            raise error

        monkeypatch.setattr("common.executors.status.status_lines", status_lines)
        return run_here("status", "--run", tmp_path)

    return run


def test_a_bug_ends_with_70_and_its_traceback_in_the_logs_of_the_run(failing, tmp_path):
    done = failing(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    (file,) = (tmp_path / "logs").glob("error-*.txt")
    assert done.returncode == BUG_EXIT == 70
    assert done.stderr.startswith("internal error: RuntimeError: mat1 and mat2") and str(file) in done.stderr
    text = file.read_text()
    assert text.startswith("mat1 and mat2") and "in status_lines" in text


def test_what_the_user_can_correct_is_one_sentence_without_a_file(failing, tmp_path):
    done = failing(InputError("steps is 0; expected at least 1."))
    assert (done.returncode, done.stderr) == (1, "error: steps is 0; expected at least 1.")
    assert not list(tmp_path.rglob("error-*.txt"))


def test_a_full_disk_is_one_sentence(failing, tmp_path):
    done = failing(OSError(errno.ENOSPC, "No space left on device", "x.bin"))
    assert done.returncode == 1 and done.stderr.startswith("error: The disk is full: x.bin")


def test_a_path_the_system_refuses_is_the_users_and_keeps_its_traceback(failing, tmp_path):
    done = failing(PermissionError(errno.EACCES, "Permission denied", "/locked"))
    (file,) = (tmp_path / "logs").glob("error-*.txt")
    assert done.returncode == 1 and "'/locked'" in done.stderr and str(file) in done.stderr


def test_a_missing_library_names_its_extra(failing):
    done = failing(ModuleNotFoundError("No module named 'ray'", name="ray.util"))
    assert done.returncode == 1 and "pip install 'omniavatar-stack[cluster]'" in done.stderr


def test_a_missing_module_that_no_extra_brings_is_a_bug(failing):
    assert failing(ModuleNotFoundError("No module named 'comon'", name="comon")).returncode == BUG_EXIT


def test_a_wrong_option_is_one_sentence():
    done = run_here("status", "--rum", "x")
    assert done.returncode == 2 and "--rum" in done.stderr and "\n" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("curat", "Did you mean 'curate'?"),
        ("models chek", "Did you mean 'check'?"),
        ("status --rum x", "--run"),
        ("status --run", "requires an argument"),
        ("query clip id", "NAME=VALUE"),
        ("query clip", "query clip id="),
        ("db", "Missing argument"),
        ("split --count x", "'x' was given"),
        ("split --count 0", "1 or more"),
        ("train --ranks 0", "1 or more"),
        ("train --ranks -1", "1 or more"),
        ("sweep drift --out x --workers -1", "0 or more"),
        ("calibrate --thresholds 0.1,nan", "with commas between"),
        ("shards forecast --clips 3 --hours inf", "0 or more"),
        ("curate --set steps", "SECTION.KEY=VALUE"),
        ("models export --role vae --layout diffusers --to x --dtype int8", "float32 or bfloat16"),
        ("eval import x --run x --made ours", "METHOD=FOLDER"),
        ("curves --run RUN --out RUN", "is a folder"),
        ("curate --run RUN/file", "is a file"),
        ("models list --set a=b", "--recipe"),
        ("status --run r\udcff", "is not UTF-8"),
        ("curate --run r\udcff", "is not UTF-8"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_2(arguments, words, tmp_path):
    (tmp_path / "file").write_text("x")
    done = run_here(*arguments.replace("RUN", str(tmp_path)).split())
    assert done.returncode == 2 and words in done.stderr and "\n" not in done.stderr
    assert done.stderr.startswith("error: ") and not done.stdout


@pytest.mark.parametrize("arguments", [(), ("models",), ("shards",)])
def test_without_arguments_there_is_the_help_and_2(arguments):
    done = run_here(*arguments)
    assert done.returncode == 2 and "Usage:" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("diff RUN RUN", "a folder at"),
        ("rebuild RUN/none", "no file at"),
        ("curves --run RUN/none", "no run folder at"),
        ("eval report --run RUN/none", "no run folder at"),
        ("status --run " + "x" * 300, "no run folder at"),
        ("yield --run RUN --grid min_iqa=1:inf:1", "cannot be read"),
        ("yield --run RUN --grid min_iqa=nan", "cannot be read"),
        ("yield --run RUN --grid min_iqa=0:1e9:1e-9", "expected at most"),
        ("curate --recipe RUN/file", "is not UTF-8 text"),
        ("curate --set curation.select.min_iqa=nan", "'curation.select.min_iqa' is 'nan'"),
        ("train --set ranks=0", "'ranks' is 0"),
        ("generate --prompt a --seconds nan", "seconds is nan"),
        ("generate --prompt a --seconds inf", "seconds is inf"),
        ("generate --prompt a --seconds -1", "seconds is -1"),
    ],
)
def test_a_path_or_a_number_that_is_wrong_is_one_sentence_and_1(arguments, words, tmp_path):
    (tmp_path / "file").write_bytes(b"\x89PNG\xff")
    done = run_here(*arguments.replace("RUN", str(tmp_path)).split())
    assert done.returncode == 1 and words in done.stderr and "\n" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_ends_with_75_and_says_how_to_go_on(number, failing, monkeypatch, tmp_path):
    before = signal.signal(number, signal.SIG_DFL)  # nohup and background jobs ignore some, which is respected

    def status_lines(root):
        stop = pytest.raises(Stopped, os.kill, os.getpid(), number).value
        stop.add_note("3 of 5 are saved")
        raise stop

    monkeypatch.setattr("common.executors.status.status_lines", status_lines)
    done = run_here("status", "--run", tmp_path)
    assert done.returncode == 75
    signal.signal(number, before)
    assert done.stderr == f"stopped by {number.name}: 3 of 5 are saved; run the same command again to go on"


def test_an_error_that_a_library_makes_of_a_stop_is_the_stop(monkeypatch, tmp_path):
    def status_lines(root):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise RuntimeError("Query interrupted") from None

    monkeypatch.setattr("common.executors.status.status_lines", status_lines)
    done = run_here("status", "--run", tmp_path)
    assert done.returncode == 75 and done.stderr.startswith("stopped by SIGTERM: what is finished is kept")
    assert not list(tmp_path.rglob("error-*.txt"))


@pytest.mark.parametrize("redirection", ["| head -1", ">&- 2>&-"])
def test_output_that_nobody_reads_is_no_error(redirection):
    shell = f"PYTHONIOENCODING=ascii NO_COLOR=1 COLUMNS=20 {sys.executable} -m pipelines.cli.start query {redirection}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_what_a_terminal_cannot_show_is_written_as_an_escape(monkeypatch, tmp_path):
    written = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", written)
    prepare_streams()
    print("naïve \udcff")
    written.flush()
    assert written.buffer.getvalue() == b"na\\xefve \\udcff\n"


NOISE = re.compile("Traceback|Warning|leaked|resource_tracker")


def _start(run: Path, *options: str) -> subprocess.Popen[str]:
    settings = ("--set", "small_world.clean=60", "--set", "executor.workers=2")
    arguments = ["curate", "--recipe", "demo", "--run", str(run), *settings, *options]
    # A shell that starts the tests in the background would hand down that Ctrl-C is to be ignored.
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.start", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=(run.parent / "log").open("w"),
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in (1, 2, 15)],  # type: ignore[func-returns-value]
    )


@pytest.mark.soak
@pytest.mark.parametrize("options", [(), ("--ray", "local")], ids=["processes", "ray"])
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_ends_alike_and_leaves_nothing(
    number: signal.Signals, group: bool, options: tuple[str, ...], tmp_path: Path
) -> None:
    for seconds in (0.3, 1.0, 3.0, 6.0, 9.0):
        process = _start(tmp_path / "run", *options)
        time.sleep(seconds)
        started = psutil.Process(process.pid).children(recursive=True)
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.wait(60) == 75
        log = (tmp_path / "log").read_text()
        assert not NOISE.search(log), log
        assert seconds < 2 or f"stopped by {number.name}: what is finished is kept in" in log.splitlines()[-1]
        assert not [left for left in psutil.wait_procs(started, 5)[1] if left.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    process = _start(tmp_path / "run")
    time.sleep(6)
    started = psutil.Process(process.pid).children(recursive=True)
    for _ in range(2):
        os.killpg(process.pid, number)
        time.sleep(0.02)
    assert process.wait(1) == 75 and not NOISE.search((tmp_path / "log").read_text())
    assert not [left for left in psutil.wait_procs(started, 5)[1] if left.status() != psutil.STATUS_ZOMBIE]
