"""Hashes of images and loudness curves in closed form, and their file."""

from pathlib import Path

import numpy as np
import pytest

from curation.decide.fingerprints import image_hash, loudness_curve, read_fingerprints


def test_loudness_in_closed_form() -> None:
    tone = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    assert loudness_curve(tone.astype(np.float32)) == [-20] * 10
    assert loudness_curve(np.zeros(3_200, np.float32)) == [-60, -60]


def test_an_image_hash_survives_scale_and_brightness() -> None:
    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(40, 200, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    other = np.kron(rng.integers(40, 200, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    changed = (frame[::2, ::2] * 0.8 + 10).astype(np.uint8)
    assert (image_hash(frame) ^ image_hash(changed)).bit_count() <= 4
    assert (image_hash(frame) ^ image_hash(other)).bit_count() > 16


def test_fingerprints_are_read_strictly(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"unit": "a"}\n')
    with pytest.raises(
        ValueError, match="line 1: expected an object with unit, cut_sha256, duration, hashes, loudness"
    ):
        read_fingerprints(tmp_path / "bad.jsonl")
    with pytest.raises(FileNotFoundError, match="There are no fingerprints at"):
        read_fingerprints(tmp_path / "gone.jsonl")
