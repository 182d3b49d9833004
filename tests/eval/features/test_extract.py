"""What is kept of a video, and what is looked at again when something is lost."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.media.write import write_video
from common.runs import sha256_file
from eval.config import FeatureConfig
from eval.features import extract
from eval.features.decoded_video import DecodedVideo
from eval.features.extract import ExtractJob, load_arrays, run_extractor, save_arrays
from eval.features.extractors import EXTRACTORS
from eval.features.records import UnscorableError


def test_a_clip_without_a_value_is_stored_with_its_reason(tmp_path: Path) -> None:
    def extract(sight: DecodedVideo) -> dict[str, np.ndarray]:
        if not sight.frames.any():
            raise UnscorableError("all black")
        return {"features": sight.frames.mean((1, 2))}

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
    names = {"video": "a.mp4", "audio": "", "real": "a.mp4"}
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
    job = ExtractJob(tmp_path, tmp_path / "cache", FeatureConfig(), {}, {})
    files = job.make()(unit).outputs["files"]
    assert set(files) == {"course", "fidelity"} and decoded == ["a"]  # no sound, no weights for FID
    assert job.make()(unit).outputs["files"] == files and decoded == ["a"]
    course = tmp_path / "cache" / files["course"]
    before = {name: array.tolist() for name, array in load_arrays(course).items()}
    course.unlink()
    job.make()(unit)
    assert {name: array.tolist() for name, array in load_arrays(course).items()} == before and decoded == ["a", "a"]
    spoilt = bytearray(course.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    course.write_bytes(bytes(spoilt))
    job.make()(unit)
    assert {name: array.tolist() for name, array in load_arrays(course).items()} == before and len(decoded) == 3


def test_the_strict_protocol_has_an_extractor_more() -> None:
    names = {
        protocol: {e.name for e in EXTRACTORS if e.wanted(FeatureConfig(protocol=protocol))}
        for protocol in ("paper", "strict")
    }
    assert names["strict"] - names["paper"] == {"fvd_slow"}
