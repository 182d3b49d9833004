"""The cached features of a judged run are found by the content of its videos; missing ones have a reason."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.runs import RunFolder, sha256_file, write_json
from eval.config import FeatureConfig
from eval.features.extract import save_arrays
from eval.features.extractors import EXTRACTORS
from eval.scoring.paired import FeaturesMissingError, cached_features

(FID,) = (extractor for extractor in EXTRACTORS if extractor.name == "fid")
WEIGHTS = {"fid_features": "w" * 64}
SCORES = {"resamples": 100, "swap_draws": 19, "jackknife_groups": 10, "seed": 0, "comparisons": []}


def write_judged(root: Path, names: dict[str, str], seed: int | None = 0) -> RunFolder:
    """A run as judging leaves it: a manifest of method a, whose "videos" are a few bytes, and features by content, of
    which those of `broken` hold a reason alone."""
    run, rows = RunFolder(root), []
    for clip, content in names.items():
        for kind, text in (("a", content), ("real", clip)):
            path = run.videos / kind / f"{clip}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            key = FID.key(FeatureConfig(protocol="strict"), WEIGHTS, {"video_sha256": sha256_file(path)})
            arrays = {"features": np.full((2, 3), float(len(text)))} if text != "broken" else {}
            save_arrays(run.cache / "features" / "fid" / f"{key}.npz", {"status": np.array("ok"), **arrays})
        paths = {"video": f"videos/a/{clip}.mp4", "reference": f"videos/real/{clip}.mp4"}
        rows.append({"method": "a", "clip_id": clip, "audio": "", "seed": seed, **paths})
    pq.write_table(pa.Table.from_pylist(rows), run.videos / "manifest.parquet")
    features = {"protocol": "strict", "fvd_stride": 1}
    write_json(run.report / "scores.json", {"config": {"features": features, "scores": SCORES}, "models": WEIGHTS})
    return run


def test_features_are_found_by_what_the_videos_hold(tmp_path: Path) -> None:
    run = write_judged(tmp_path, {"x": "aaaaa", "yy": "aaaaaaa", "z": "broken"})
    (run.videos / "a" / "yy.mp4").write_text("made again since")
    features = cached_features(run, "a", "fid")
    assert {clip: float(rows.mean()) for clip, rows in features.own.items()} == {"x": 5.0}
    assert {clip: float(rows.mean()) for clip, rows in features.real.items()} == {"x": 1.0, "yy": 2.0, "z": 1.0}
    assert (features.weights, features.scores.swap_draws, features.scores.jackknife_groups) == ("w" * 64, 19, 10)


def test_missing_features_have_a_reason(tmp_path: Path) -> None:
    run = write_judged(tmp_path, {"x": "aaaaa"})
    with pytest.raises(FeaturesMissingError, match="not judged with fvd_features"):
        cached_features(run, "a", "fvd")
    with pytest.raises(FeaturesMissingError, match="no features of b are in the cache"):
        cached_features(run, "b", "fid")
    for file in run.cache.rglob("*.npz"):
        file.unlink()
    with pytest.raises(FeaturesMissingError, match="judge it again"):
        cached_features(run, "a", "fid")
    (run.videos / "manifest.parquet").unlink()
    with pytest.raises(FeaturesMissingError, match="does not exist"):
        cached_features(run, "a", "fid")
    with pytest.raises(FeaturesMissingError, match="not judged"):
        cached_features(RunFolder(tmp_path / "empty"), "a", "fid")
