"""What is cached of a video, and what is extracted again when a file is lost."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.lib.format import write_array_header_1_0

from common.media.open import MediaError
from common.media.write import write_video
from common.runs import sha256_file
from eval.config import FeatureConfig
from eval.features import extract
from eval.features.extract import (
    INPUTS,
    ExtractStage,
    decode_for_metrics,
    is_lost,
    load_arrays,
    run_extractor,
    save_arrays,
)
from eval.features.extractors import EXTRACTORS, DecodedVideo
from eval.features.records import UnscorableError
from perception.faces.detect import Face

GREY = np.full((10, 32, 32, 3), 128, np.uint8)


class Counting:
    """Sees one face in every frame and counts its looks."""

    def __init__(self) -> None:
        self.looks = 0

    def detect(self, frame: np.ndarray) -> list[Face]:
        self.looks += 1
        return [Face(np.zeros(4, np.float32), 1.0, None)]


def unit_of(video: str, real: str = "", sha: str = "r") -> dict[str, str]:
    return dict.fromkeys(INPUTS, "") | {"video": video, "real": real, "video_sha256": "v", "real_sha256": sha}


def test_each_frame_is_searched_once() -> None:
    video, detector = DecodedVideo(GREY, np.zeros(0)), Counting()
    assert sorted(video.faces(detector, 3)) == [0, 3, 6, 9] and detector.looks == 4
    assert len(video.faces(detector)) == 10 and detector.looks == 10
    video.faces(detector, 2)
    assert detector.looks == 10


def test_the_real_video_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", GREY, None)
    assert decode_for_metrics(tmp_path, unit_of("a.mp4", "a.mp4")).real().shape == GREY.shape
    own = decode_for_metrics(tmp_path, unit_of("a.mp4", "a.mp4", "v"))
    assert own.real() is own.frames
    for absent in (unit_of("a.mp4"), unit_of("a.mp4", "lost.mp4", "q")):
        with pytest.raises(UnscorableError, match="no real video"):
            decode_for_metrics(tmp_path, absent).real()


def test_an_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[[10, 20, 30]]], np.uint8))
    assert decode_for_metrics(tmp_path, unit_of("a.png")).frames.tolist() == [[[[30, 20, 10]]]]
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match="b.png is not an image"):
        decode_for_metrics(tmp_path, unit_of("b.png"))


def test_a_clip_without_a_value_is_stored_with_its_reason(tmp_path: Path) -> None:
    def extract(video: DecodedVideo) -> dict[str, np.ndarray]:
        if not video.frames.any():
            raise UnscorableError("all black")
        return {"features": video.frames.mean((1, 2))}

    frames = np.full((2, 4, 4, 3), 7, np.uint8)
    for name, seen in (("a", frames), ("b", 0 * frames)):
        save_arrays(tmp_path / f"deep/{name}.npz", run_extractor(extract, DecodedVideo(seen, np.zeros(0, np.float32))))
    good, bad = (load_arrays(tmp_path / f"deep/{name}.npz") for name in "ab")
    assert str(good["status"]) == "ok" and (good["features"] == 7).all()
    assert str(bad["status"]) == "all black" and set(bad) == {"status"}


@pytest.fixture
def unit(tmp_path: Path) -> dict:
    """Two seconds of noise, its own real video."""
    write_video(tmp_path / "a.mp4", np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), np.uint8), None)
    names = dict.fromkeys(INPUTS, "") | {"video": "a.mp4", "real": "a.mp4"}
    hashes = {f"{kind}_sha256": sha256_file(tmp_path / path) if path else "" for kind, path in names.items()}
    return {"unit": "a", **names, **hashes, "extractors": ["course", "fidelity", "sound", "fid"]}


def test_one_decode_serves_all_and_only_what_is_lost_is_done_again(
    tmp_path: Path, unit: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    read: Callable = extract.decode_for_metrics
    monkeypatch.setattr(
        extract, "decode_for_metrics", lambda root, unit: decoded.append(unit["unit"]) or read(root, unit)
    )
    stage = ExtractStage(FeatureConfig(), (), tmp_path, tmp_path / "cache")
    stage.load()
    files = stage(unit).outputs["files"]
    assert set(files) == {"course", "fidelity"} and decoded == ["a"]  # no sound, no weights for FID
    outcome = stage(unit)
    assert outcome.outputs["files"] == files and decoded == ["a"] and stage.product_exists(unit, outcome)
    course = tmp_path / "cache" / files["course"]
    before = {name: array.tolist() for name, array in load_arrays(course).items()}
    course.unlink()
    assert not stage.product_exists(unit, outcome)
    stage(unit)
    assert {name: array.tolist() for name, array in load_arrays(course).items()} == before and decoded == ["a", "a"]
    spoilt = bytearray(course.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    course.write_bytes(bytes(spoilt))
    assert not stage.product_exists(unit, outcome)
    stage(unit)
    assert {name: array.tolist() for name, array in load_arrays(course).items()} == before and len(decoded) == 3


def test_the_strict_protocol_has_an_extractor_more() -> None:
    names = {
        protocol: {e.name for e in EXTRACTORS if e.is_in(FeatureConfig(protocol=protocol))}
        for protocol in ("paper", "strict")
    }
    assert names["strict"] - names["paper"] == {"fvd_slow"}


def _bomb(path: Path, array: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", array)


def _npy(shape: tuple[int, ...], kind: str = "<f4", data: bytes = bytes(16)) -> bytes:
    header = io.BytesIO()
    write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    return header.getvalue() + data


@pytest.mark.parametrize(
    "array",
    [
        _npy((10**9, 10**6)),
        _npy((2**62, 16)),
        _npy((3,)),
        _npy((2,), "|O"),
        _npy((4,)) + bytes(3_000_000),
        b"no array",
        b"",
    ],
)
def test_arrays_that_claim_more_than_they_hold_are_lost(
    tmp_path: Path, array: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.untrusted.weight_files.SLACK", 10_000)
    _bomb(tmp_path / "a.npz", array)
    assert is_lost(tmp_path / "a.npz")
    save_arrays(tmp_path / "a.npz", {"features": np.zeros((4, 0)), "status": np.array("ok"), "n": np.float64(2)})
    assert not is_lost(tmp_path / "a.npz") and set(load_arrays(tmp_path / "a.npz")) == {"features", "status", "n"}
