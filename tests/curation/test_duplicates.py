"""Planted copies are found whatever was done to them; people who look or sound alike are not copies."""

from pathlib import Path

import numpy as np
import pytest

from common.media import write_video
from curation.cut import cut_row
from curation.duplicates import DuplicatesConfig, fingerprint_clip, group_duplicates, loudness_curve, picture_hash
from miniature.world import draw_clip
from tests.curation.conftest import Talk, clip_row


@pytest.fixture
def row(tmp_path: Path):
    """Makes the fingerprinted row of a clip with these pictures and this sound."""

    def make(name: str, frames: np.ndarray, audio: np.ndarray, crf: int = 18) -> dict:
        path = tmp_path / f"{name}.mp4"
        write_video(path, frames, audio, crf=crf)
        clip = clip_row(path, Talk(frames, audio, audio), name)
        clip["cut_sha256"] = cut_row(tmp_path / "clips", clip).outputs["sha256"]
        return clip | fingerprint_clip(tmp_path / "clips" / f"{name}.mp4")

    return make


def test_copies_are_found_and_the_first_stays(row) -> None:
    one, two = draw_clip(11), draw_clip(12)
    rows = [
        row("a_original", one.frames, one.audio),
        row("b_other", two.frames, two.audio),
        row("c_same_bytes", one.frames, one.audio),
        row("d_coded_again", one.frames, 0.8 * one.audio, crf=26),
        row("e_other_sound", one.frames, two.audio),
        row("f_other_face", two.frames, one.audio),
    ]
    groups = group_duplicates(DuplicatesConfig(), rows)
    assert groups == ["a_original", None, "a_original", "a_original", None, None]


def test_a_chain_of_copies_is_one_group(row) -> None:
    one = draw_clip(11)
    rows = [row(name, one.frames, one.audio, crf) for name, crf in (("a", 18), ("b", 24), ("c", 28))]
    assert group_duplicates(DuplicatesConfig(), rows) == ["a", "a", "a"]


def test_forty_people_are_forty_people(row) -> None:
    clips = [draw_clip(seed, 3.0) for seed in range(40)]
    rows = [
        {"unit": str(n), "cut_sha256": str(n), "duration": 3.0, "loudness": loudness_curve(clip.audio)}
        | {"hashes": [f"{picture_hash(clip.frames[at]):016x}" for at in (12, 37, 62)]}
        for n, clip in enumerate(clips)
    ]
    assert group_duplicates(DuplicatesConfig(), rows) == [None] * 40


def test_silent_clips_are_told_apart_by_their_pictures(row) -> None:
    one, two = draw_clip(11), draw_clip(12)
    silence = np.zeros(75 * 640, np.float32)
    rows = [row("a", one.frames, silence), row("b", one.frames, silence, crf=21), row("c", two.frames, silence)]
    assert group_duplicates(DuplicatesConfig(), rows)[2] is None


def test_loudness_in_closed_form() -> None:
    tone = np.sqrt(2) * 0.1 * np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000)
    assert loudness_curve(tone.astype(np.float32)) == [-20] * 10
    assert loudness_curve(np.zeros(3_200, np.float32)) == [-60, -60]


def test_a_picture_hash_survives_scale_and_brightness() -> None:
    rng = np.random.default_rng(0)
    frame = np.kron(rng.integers(40, 200, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    other = np.kron(rng.integers(40, 200, (16, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    changed = (frame[::2, ::2] * 0.8 + 10).astype(np.uint8)
    assert (picture_hash(frame) ^ picture_hash(changed)).bit_count() <= 4
    assert (picture_hash(frame) ^ picture_hash(other)).bit_count() > 16
