"""Frames that the networks get, what a cache key depends on, and that each extractor gives the arrays metrics read."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eval.config import ROLES, FeatureConfig, SyncRules
from eval.features.extract import INPUTS, run_extractor
from eval.features.extractors import EXTRACTORS, DecodedVideo, frame_choice
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip

BY_NAME = {extractor.name: extractor for extractor in EXTRACTORS}
HASHES = {role: role for role in ROLES if role != "face_detector"}
UNIT = {f"{kind}_sha256": kind for kind in INPUTS}
OF_PARTICLES = {"particles", "trajectories"}  # of an avatar: test_particles.py
CONFIG = FeatureConfig()


def changed(config: FeatureConfig = CONFIG, hashes: dict[str, str] | None = None, **unit: str) -> set[str]:
    """Names of the extractors whose cache key differs from the plain one."""
    before = {name: e.key(CONFIG, HASHES, UNIT) for name, e in BY_NAME.items()}
    after = {name: e.key(config, HASHES | (hashes or {}), UNIT | unit) for name, e in BY_NAME.items()}
    return {name for name in BY_NAME if before[name] != after[name]}


def test_each_key_depends_on_what_its_extractor_depends_on_and_on_nothing_else() -> None:
    assert changed() == set()
    assert changed(video_sha256="w") == set(BY_NAME) - {"sound"} - OF_PARTICLES
    assert changed(motion_sha256="n") == OF_PARTICLES and changed(motion_reference_sha256="n") == {"trajectories"}
    assert changed(audio_sha256="t") == {"sync", "sound"} and changed(real_sha256="t") == {"fidelity"}
    assert changed(hashes={"face_detector": "e"}) == {"sync", "identity", "lips", "background"}
    assert changed(hashes={"sync_scorer": "e"}) == {"sync"} and changed(hashes={"pose": "e"}) == {"pose"}
    assert changed(hashes={"fid_features": "e"}) == {"fid"}
    assert changed(replace(CONFIG, sync=SyncRules(min_track=50))) == {"sync", "lips"}
    assert changed(replace(CONFIG, protocol="strict")) == {"fid", "fvd", "fvd_slow"}
    assert changed(replace(CONFIG, fvd_stride=4)) == {"fvd"}
    assert changed(replace(CONFIG, identity_every=5)) == {"identity"}


def test_only_missing_weights_stop_an_extractor() -> None:
    assert BY_NAME["sync"].missing({"sync_scorer": "c"}) == []
    assert BY_NAME["identity"].missing({"face_detector": "e"}) == ["face_identity"]
    assert [name for name, extractor in BY_NAME.items() if not extractor.missing({})] == [
        "lips", "sound", "course", "background", "fidelity", "particles", "trajectories",
    ]  # fmt: skip


def test_the_strict_protocol_leaves_out_the_frame_that_was_given() -> None:
    strict = replace(CONFIG, protocol="strict")
    assert list(frame_choice(40, CONFIG)) == list(range(40))
    chosen = frame_choice(76, strict)
    assert len(chosen) == 16 and chosen[0] == 1 and chosen[-1] == 75 and set(np.diff(chosen)) <= {4, 5, 6}
    assert list(frame_choice(5, strict)) == [1, 2, 3, 4] and list(frame_choice(1, strict)) == [0]


@pytest.fixture(scope="module")
def outputs() -> dict[str, dict[str, Any]]:
    """All that the small world's networks say of three seconds under the strict protocol."""
    clip = draw_clip(HELD_OUT_SEED + 21, 3.0)
    video = DecodedVideo(clip.frames, clip.audio, lambda: clip.frames)
    config, models = FeatureConfig(protocol="strict", identity_every=5), model_paths()
    ready = [e for e in EXTRACTORS if not e.missing(dict.fromkeys(models, "x")) and e.name != "quality"]
    return {e.name: run_extractor(e.load(config, models), video) for e in ready if e.name not in OF_PARTICLES}


def test_every_extractor_with_weights_gives_its_arrays(outputs: dict[str, dict[str, Any]]) -> None:
    assert {str(arrays["status"]) for arrays in outputs.values()} == {"ok"}
    assert set(BY_NAME) - set(outputs) == {"pose", "quality"} | OF_PARTICLES
    identity = outputs["identity"]
    assert identity["embeddings"].shape == (15, 512) and float(identity["fps"]) == 5
    assert len(outputs["lips"]["changes"]) == len(outputs["course"]["jumps"]) - 1 == 73
    assert outputs["background"]["colours"].shape == outputs["course"]["colours"].shape == (3, 5)
    assert outputs["sound"]["speech"].shape == outputs["sound"]["quiet"].shape == (75,)
    assert outputs["sync"]["by_window"].shape == (70, 31)
    assert set(outputs["fidelity"]["psnr"]) == {100.0}


def test_strict_uses_windows_end_to_end_and_long_ones(outputs: dict[str, dict[str, Any]]) -> None:
    assert len(outputs["fvd"]["features"]) == 75 // 16 and len(outputs["fvd_slow"]["features"]) == 1
    frames = np.zeros((60, 64, 64, 3), np.uint8)  # 61 are needed
    short = run_extractor(
        BY_NAME["fvd_slow"].load(FeatureConfig("strict"), model_paths()), DecodedVideo(frames, np.zeros(0))
    )
    assert "need at least 61" in str(short["status"]) and set(short) == {"status"}


def test_the_roles_of_the_settings_are_those_that_extractors_read() -> None:
    assert set(ROLES) == {role for extractor in EXTRACTORS for role in extractor.needs + extractor.uses}
