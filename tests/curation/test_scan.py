"""One pass finds the planted cut, the faces and the frames that repeat."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from curation import scan as module
from curation.scan import ScanConfig, scan_source
from perception.faces import load_face_detector
from tests.curation.conftest import FACE, Talk, draw_talk, write_talk


@pytest.fixture
def scan(face_pack: Path):
    detector = load_face_detector(face_pack)

    def run(path: Path, **options: float) -> dict:
        outcome = scan_source(ScanConfig(**options), detector, {"unit": path.name, "path": str(path)})
        assert outcome.state == "kept"
        return outcome.outputs

    return run


def joined(*talks: Talk) -> Talk:
    fields = ("frames", "audio", "loudness")
    return Talk(*(np.concatenate([getattr(talk, field) for talk in talks]) for field in fields))


def test_a_cut_is_found_on_its_frame(scan, tmp_path: Path) -> None:
    talk = joined(draw_talk(1, 2.0), draw_talk(2, 2.4))
    assert scan(write_talk(tmp_path / "two.mp4", talk))["cuts"] == [2.0]


def test_cuts_are_in_seconds_also_at_30_fps(scan, tmp_path: Path) -> None:
    talk = joined(draw_talk(1, 2.0), draw_talk(2, 2.4))
    assert scan(write_talk(tmp_path / "two.mp4", talk, fps=30))["cuts"] == [pytest.approx(50 / 30, abs=1e-3)]


def test_faces_are_looked_for_at_the_interval(scan, tmp_path: Path) -> None:
    faces = scan(write_talk(tmp_path / "one.mp4", draw_talk(1, 2.0)))["faces"]
    assert [time for time, _ in faces] == pytest.approx(np.arange(0, 2, 0.2))
    assert all(boxes == [list(map(float, FACE))] for _, boxes in faces)
    assert len(scan(tmp_path / "one.mp4", face_interval=0.5)["faces"]) == 4


def test_motion_tells_repeated_frames(scan, tmp_path: Path) -> None:
    moving = draw_talk(1, 2.0)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "a.mp4", moving))["motion"]) <= 2) < 0.1
    held = Talk(np.repeat(moving.frames[::2], 2, 0), moving.audio, moving.loudness)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "b.mp4", held, crf=6))["motion"]) <= 2) == pytest.approx(
        0.5, abs=0.06
    )
    frozen = Talk(np.repeat(moving.frames[:1], 50, 0), moving.audio, moving.loudness)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "c.mp4", frozen))["motion"]) <= 2) > 0.95


def test_a_source_is_decoded_once(scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_talk(tmp_path / "one.mp4", draw_talk(1, 2.0))
    decoded = []
    original = module.decode_video

    def counting(*args, **options):
        for frame in original(*args, **options):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(module, "decode_video", counting)
    scan(path)
    assert len(decoded) == 50


def test_a_file_that_breaks_on_the_way_is_refused(face_pack: Path, tmp_path: Path) -> None:
    path = write_talk(tmp_path / "broken.mp4", draw_talk(1, 2.0))
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle:-100] = bytes(len(content) - 100 - middle)
    path.write_bytes(content)
    look = partial(scan_source, ScanConfig(), load_face_detector(face_pack))
    outcome = look({"unit": "broken", "path": str(path)})
    assert outcome.state == "rejected" and outcome.reason in ("unreadable", "truncated")
