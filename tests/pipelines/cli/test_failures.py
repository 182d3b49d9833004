import errno

import pytest

from common.errors import InputError
from pipelines.cli.failures import BUG_EXIT
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
    assert done.returncode == 1 and "--rum" in done.stderr and "\n" not in done.stderr
