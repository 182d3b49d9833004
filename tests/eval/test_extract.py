"""What the networks are shown, and what a cached result depends on."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.extract import EXTRACTORS, FeatureConfig, Sight, frame_choice, load_arrays, run_extractor, save_arrays
from eval.metrics.sync import SyncRules, UnscorableError

BY_NAME = {extractor.name: extractor for extractor in EXTRACTORS}
HASHES = {"fid_features": "a", "fvd_features": "b", "sync_scorer": "c", "quality_scorer": "d"}
UNIT = {"video_sha256": "v", "audio_sha256": "s"}
CONFIG = FeatureConfig()


def changed(config: FeatureConfig = CONFIG, hashes: dict[str, str] | None = None, **unit: str) -> set[str]:
    """Names of the extractors whose cache key differs from the plain one."""
    before = {name: e.key(CONFIG, HASHES, UNIT) for name, e in BY_NAME.items()}
    after = {name: e.key(config, HASHES | (hashes or {}), UNIT | unit) for name, e in BY_NAME.items()}
    return {name for name in BY_NAME if before[name] != after[name]}


def test_each_key_depends_on_what_its_extractor_depends_on_and_on_nothing_else() -> None:
    assert changed() == set()
    assert changed(video_sha256="w") == set(BY_NAME)
    assert changed(audio_sha256="t") == {"sync"}
    assert changed(hashes={"face_detector": "e"}) == changed(hashes={"sync_scorer": "e"}) == {"sync"}
    assert changed(hashes={"fid_features": "e"}) == {"fid"}
    assert changed(replace(CONFIG, sync=SyncRules(min_track=50))) == {"sync"}
    assert changed(replace(CONFIG, protocol="strict")) == {"fid", "fvd"}
    assert changed(replace(CONFIG, fvd_stride=4)) == {"fvd"}


def test_only_missing_weights_stop_an_extractor() -> None:
    assert BY_NAME["sync"].missing({"sync_scorer": "c"}) == []
    assert BY_NAME["sync"].missing({"face_detector": "e"}) == ["sync_scorer"]


def test_the_strict_protocol_leaves_out_the_frame_that_was_given() -> None:
    strict = replace(CONFIG, protocol="strict")
    assert list(frame_choice(40, CONFIG)) == list(range(40))
    chosen = frame_choice(76, strict)
    assert len(chosen) == 16 and chosen[0] == 1 and chosen[-1] == 75 and set(np.diff(chosen)) <= {4, 5, 6}
    assert list(frame_choice(5, strict)) == [1, 2, 3, 4] and list(frame_choice(1, strict)) == [0]


def test_a_clip_without_a_value_is_stored_with_its_reason(tmp_path: Path) -> None:
    def extract(sight: Sight) -> dict[str, np.ndarray]:
        if not sight.frames.any():
            raise UnscorableError("all black")
        return {"features": sight.frames.mean((1, 2))}

    frames = np.full((2, 4, 4, 3), 7, np.uint8)
    for name, seen in (("a", frames), ("b", 0 * frames)):
        save_arrays(tmp_path / f"deep/{name}.npz", run_extractor(extract, Sight(seen, np.zeros(0, np.float32))))
    good, bad = (load_arrays(tmp_path / f"deep/{name}.npz") for name in "ab")
    assert str(good["status"]) == "ok" and (good["features"] == 7).all()
    assert str(bad["status"]) == "all black" and set(bad) == {"status"}
