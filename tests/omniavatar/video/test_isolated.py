import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import InputError, MissingFileError
from common.media.open import MediaError
from omniavatar.video import isolated
from omniavatar.video.isolated import DecoderStoppedError, decode

HERE = "tests.omniavatar.video.test_isolated"


def arrays(path: str) -> tuple[object, ...]:
    print("what libraries print is no reply")
    os.write(1, b"nor what native code prints\n")
    return np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], np.zeros((0, 3), np.uint8), 48_000, path


def number(path: str) -> list[int]:
    return [int(Path(path).read_text())]


def crash(path: str) -> None:
    """What a decoder does to its process."""
    if path == "hang":
        time.sleep(60)
    os.kill(os.getpid(), getattr(signal, path))


def refuse(path: str) -> None:
    raise {"input": InputError, "missing": MissingFileError}.get(path, lambda words: MediaError("no_audio", words))(
        path
    )


def stumble(path: str) -> None:
    raise ZeroDivisionError(f"a bug at {path}")


def process() -> int:
    decode(f"{HERE}:arrays", "")
    child = isolated._own_child().process
    assert child is not None
    return child.pid


def test_arrays_numbers_and_text_come_back() -> None:
    strided, empty, number, text = decode(f"{HERE}:arrays", "naïve \udcff name")
    assert np.array_equal(strided, [[0, 2], [4, 6], [8, 10]]) and strided.dtype == np.float32
    assert empty.shape == (0, 3) and (number, text) == (48_000, "naïve \udcff name")


def test_one_child_serves_until_it_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    first = process()
    assert process() == first
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS"):
        with pytest.raises(MediaError, match=rf"^{name} cannot be decoded: its decoder crashed \({name}\)"):
            decode(f"{HERE}:crash", name)
    with pytest.raises(DecoderStoppedError, match="was killed by signal SIGKILL"):
        decode(f"{HERE}:crash", "SIGKILL")
    monkeypatch.setattr(isolated, "TIME_LIMIT", 1.5)
    with pytest.raises(DecoderStoppedError, match="hang was not decoded within 1.5 s"):
        decode(f"{HERE}:crash", "hang")
    assert process() != first


def test_a_relative_path_is_of_the_folder_that_the_caller_is_in_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode(f"{HERE}:arrays", "a")
    (tmp_path / "face.txt").write_text("7")
    monkeypatch.chdir(tmp_path)
    assert decode(f"{HERE}:number", "face.txt") == [7]


def test_a_child_that_died_between_two_files_is_replaced() -> None:
    first = process()
    os.kill(first, signal.SIGKILL)
    time.sleep(0.05)
    assert process() != first


def test_errors_keep_their_kind_and_the_child() -> None:
    child = process()
    for path, kind in (("input", InputError), ("missing", MissingFileError), ("mute", MediaError)):
        with pytest.raises(kind, match=f"^{path}$") as caught:
            decode(f"{HERE}:refuse", path)
    assert isinstance(caught.value, MediaError) and caught.value.kind == "no_audio"
    assert process() == child


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a bug at x") as caught:
        decode(f"{HERE}:stumble", "x")
    assert "in stumble" in caught.value.__notes__[0]


def test_a_file_of_the_working_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "av.py").write_text("raise SystemExit('planted')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    isolated._own_child().end()
    assert process()
