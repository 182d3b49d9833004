"""The gallery shows the ends and the middle, in one order, and only files that are there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import eval.reporting.gallery
from common.media.write import write_video
from common.runs import RunFolder
from eval.reporting.card import best_median_worst
from eval.reporting.gallery import gallery


def write_run(root: Path, clips: int) -> RunFolder:
    run = RunFolder(root)
    metrics, manifest = [], []
    for i in range(clips):
        for method, base in (("base", 1.0), ("adapter", 5.0), ("ground_truth", 8.0)):
            video = f"videos/{method}/c{i}.mp4"
            write_video(root / video, np.full((3, 16, 16, 3), 40 * i, np.uint8), None)
            metrics.append({"method": method, "clip_id": f"c{i}", "metric": "sync_c", "value": base + (i * 7) % 5})
            manifest.append({"method": method, "clip_id": f"c{i}", "video": video})
    pq.write_table(pa.Table.from_pylist(metrics), run.report / "metrics.parquet")
    pq.write_table(pa.Table.from_pylist(manifest), run.videos / "manifest.parquet")
    return run


def test_best_median_and_worst_of_the_adapter(tmp_path: Path) -> None:
    run = write_run(tmp_path, 5)
    (run.videos / "base" / "c2.mp4").unlink()
    rows = {row["title"]: row for row in gallery(run)}
    # The adapter has 5, 7, 9, 6, 8 on clips 0 to 4.
    assert {title: row["clip_id"] for title, row in rows.items()} == {"best": "c2", "median": "c1", "worst": "c0"}
    assert [video["method"] for video in rows["median"]["videos"]] == ["ground_truth", "adapter", "base"]
    assert [video["method"] for video in rows["best"]["videos"]] == ["ground_truth", "adapter"]
    assert [video["score"] for video in rows["worst"]["videos"]] == [8.0, 5.0, 1.0]
    assert all(
        video["content"].startswith("data:video/mp4;base64,") for row in rows.values() for video in row["videos"]
    )


def test_another_system_is_shown_by_what_it_was_scored_in(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    metrics, manifest = [], []
    for i in range(3):
        for method in ("ground_truth", "theirs"):
            video = f"videos/{method}/c{i}.mp4"
            write_video(tmp_path / video, np.full((3, 16, 16, 3), 40 * i, np.uint8), None)
            scores = {"sync_c": None, "psnr": 20.0 + i}
            metrics += [{"method": method, "clip_id": f"c{i}", "metric": m, "value": v} for m, v in scores.items()]
            manifest.append({"method": method, "clip_id": f"c{i}", "video": video})
    pq.write_table(pa.Table.from_pylist(metrics), run.report / "metrics.parquet")
    pq.write_table(pa.Table.from_pylist(manifest), run.videos / "manifest.parquet")
    best = gallery(run)[0]
    assert (best["title"], best["clip_id"], best["label"], best["method"]) == ("best", "c2", "PSNR", "theirs")
    assert [video["method"] for video in best["videos"]] == ["ground_truth", "theirs"]


def test_few_clips_are_shown_once() -> None:
    assert best_median_worst([]) == []
    assert best_median_worst([(1.0, "a")]) == [("best", "a")]
    assert best_median_worst([(1.0, "a"), (2.0, "b")]) == [("best", "b"), ("worst", "a")]


def test_a_page_too_large_has_no_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path, 2)
    monkeypatch.setattr(eval.reporting.gallery, "LARGEST_BYTES", 100)
    assert gallery(run) == [] == gallery(RunFolder(tmp_path / "empty"))
