"""The whole evaluation on a few drawn clips and random networks: coverage, failures as rows, kill and go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.executors.config import ExecutorConfig
from common.media.write import write_video
from common.runs import RunFolder, read_json, write_json
from eval.config import EvalConfig, FeatureConfig, ScoreConfig, SyncRules
from eval.features.records import NOT_NAMED
from eval.job import evaluate
from eval.manifest import ManifestError, read_manifest
from eval.metrics.clip_metrics import CLIP_METRICS
from eval.scoring.paired import compare_methods
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from perception.sync.syncnet import SyncNet, SyncNetWidths

# Clips whose faces OpenCV's cascade finds in every frame.
SEEDS = (3001, 3004, 3007)
SECONDS = 1.2
CONFIG = EvalConfig(
    features=FeatureConfig(sync=SyncRules(max_shift=5, min_track=20)),
    scores=ScoreConfig(comparisons=("adapter>base",), resamples=200, swap_draws=9),
)
SCRIPT = """
import sys
from pathlib import Path
from test_job import CONFIG, ExecutorConfig, RunFolder, evaluate, network_files
evaluate(CONFIG, network_files(Path(sys.argv[2])), RunFolder(Path(sys.argv[1])), ExecutorConfig(workers=1))
"""


class FrameNet(nn.Module):
    """Stands where the Inception file stands: 4 x 4 mean colours through one random layer."""

    input_size: int

    def __init__(self) -> None:
        super().__init__()
        self.input_size = 32
        self.head = nn.Linear(48, 6)

    def forward(self, pixels: Tensor, return_features: bool = True) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(pixels, [4, 4]).flatten(1) / 255)


class ClipNet(nn.Module):
    """Stands where the I3D file stands: 4 x 2 x 2 mean colours through one random layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 6)

    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        return self.head(F.adaptive_avg_pool3d(video, [4, 2, 2]).flatten(1) / 255)


def network_files(folder: Path) -> dict[str, Path | None]:
    """Random networks in the formats of the real ones; no quality scorer."""
    files = {role: folder / role for role in ("fid_features", "fvd_features", "sync_scorer")}
    if not folder.exists():
        folder.mkdir()
        torch.manual_seed(0)
        torch.jit.script(FrameNet()).save(str(files["fid_features"]))
        torch.jit.script(ClipNet()).save(str(files["fvd_features"]))
        torch.save(SyncNet(SyncNetWidths((4,) * 6, (4,) * 6, 8, 64)).state_dict(), files["sync_scorer"])
    return {**files, "quality_scorer": None, "face_detector": None}


def write_run(root: Path) -> RunFolder:
    """Ground truth, a slightly and a much brighter copy of three clips, and a demo video."""
    run = RunFolder(root)
    rows = []
    for seed in SEEDS:
        clip = draw_clip(seed, SECONDS)
        for method, brighter in (("ground_truth", 0), ("adapter", 5), ("base", 25)):
            frames = np.clip(clip.frames.astype(int) + brighter, 0, 255).astype(np.uint8)
            write_video(run.videos / method / f"{seed}.mp4", frames, clip.audio)
            paths = {"video": f"videos/{method}/{seed}.mp4", "reference": f"videos/ground_truth/{seed}.mp4"}
            rows.append({"method": method, "clip_id": str(seed), "audio": paths["reference"], "seed": seed, **paths})
    write_video(run.videos / "demo.mp4", clip.frames, clip.audio)
    pq.write_table(pa.Table.from_pylist(rows), run.videos / "manifest.parquet")
    return run


def results(run: RunFolder) -> dict[str, bytes]:
    """The bytes of everything the evaluation hands on."""
    return {name: (run.report / name).read_bytes() for name in ("metrics.parquet", "scores.json", "demo_sync.json")}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    return network_files(tmp_path_factory.mktemp("models") / "nets")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("videos")).root


def copy_of(videos: Path, root: Path) -> RunFolder:
    shutil.copytree(videos, root)
    return RunFolder(root)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, videos: Path, models: dict[str, Path | None]) -> RunFolder:
    run = copy_of(videos, tmp_path_factory.mktemp("judged") / "run")
    evaluate(CONFIG, models, run, ExecutorConfig(workers=1))
    return run


def test_every_clip_and_metric_has_a_row_with_a_status(judged: RunFolder) -> None:
    rows = pq.read_table(judged.report / "metrics.parquet").to_pylist()
    per_clip = [row for row in rows if row["clip_id"]]
    assert len(per_clip) == 3 * 3 * len(CLIP_METRICS)
    scored = [
        row for row in per_clip if CLIP_METRICS[row["metric"]].extractor == "sync" and "speech" not in row["metric"]
    ]
    assert all(row["status"] == "ok" and 15 <= row["n"] <= 25 for row in scored)
    unscored = {(row["status"], row["value"]) for row in per_clip if row["metric"] in ("iqa", "ase")}
    assert unscored == {("skipped: no weights", None)}


def test_the_brighter_method_is_further_from_the_real_clips(judged: RunFolder) -> None:
    methods = read_json(judged.report / "scores.json")["methods"]
    for name in ("fid", "fvd"):
        assert 0 <= methods["adapter"][name]["value"] < methods["base"][name]["value"]
        assert methods["base"][name]["n"] == 3
    assert methods["ground_truth"]["sync_c"]["coverage"] == 1.0
    assert methods["adapter"]["iqa"] == {
        "value": None, "clips": 3, "n": 0, "coverage": 0.0,
        "unscored": {"skipped: no weights": 3}, "status": "skipped: no weights",
    }  # fmt: skip


def test_what_the_distances_rest_on_is_found_again(judged: RunFolder) -> None:
    table = pq.read_table(judged.report / "metrics.parquet").to_pylist()
    found = compare_methods((table, table), ("adapter", "base"), ("a", "b"), ("fid", "kvd"), None, (judged, judged))
    scores = read_json(judged.report / "scores.json")
    for each in found:
        assert each.rests_on == "9 swaps of 3 clips"
        for method, value in (("adapter", each.mean_a), ("base", each.mean_b)):
            assert value == pytest.approx(scores["methods"][method][each.metric]["value"])
        (test,) = (test for test in scores["comparisons"] if test["metric"] == each.metric)
        assert (each.p, each.difference) == (test["p"], pytest.approx(test["difference"]))


def test_the_demo_video_has_a_sync_curve(judged: RunFolder) -> None:
    sync = read_json(judged.report / "demo_sync.json")
    assert sync["status"] == "ok" and len(sync["curve"]) == 25 - 8 and sync["curve_start"] == 6


def test_a_second_run_changes_no_byte_and_decodes_nothing(judged: RunFolder, models: dict[str, Path | None]) -> None:
    before = results(judged)
    features = {path: path.stat().st_mtime_ns for path in judged.cache.rglob("*.npz")}
    evaluate(CONFIG, models, judged, ExecutorConfig(workers=1))
    assert results(judged) == before
    assert {path: path.stat().st_mtime_ns for path in judged.cache.rglob("*.npz")} == features


def test_a_deleted_cache_is_made_again(judged: RunFolder, models: dict[str, Path | None]) -> None:
    before = results(judged)
    lost = sorted(judged.cache.rglob("*.npz"))[::3]
    for path in lost:
        path.unlink()
    evaluate(CONFIG, models, judged, ExecutorConfig(workers=1))
    assert results(judged) == before and all(path.exists() for path in lost)


def test_killed_runs_resume_to_the_same_bytes(
    tmp_path: Path, videos: Path, judged: RunFolder, models: dict[str, Path | None]
) -> None:
    run = copy_of(videos, tmp_path / "killed")
    folder = models["sync_scorer"]
    assert folder is not None
    roots = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    command = [sys.executable, "-c", SCRIPT, str(run.root), str(folder.parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(roots)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while _finished_units(run) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 2 <= _finished_units(run) < 10 and not (run.report / "scores.json").exists()
    evaluate(CONFIG, models, run, ExecutorConfig(workers=1))
    assert results(run) == results(judged)


def _finished_units(run: RunFolder) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in run.ledger.glob("eval-*.jsonl"))


def test_broken_and_faceless_videos_are_rows_and_leave_the_others_alone(
    tmp_path: Path, videos: Path, models: dict[str, Path | None]
) -> None:
    run = copy_of(videos, tmp_path / "broken")
    (run.videos / "base" / "3001.mp4").write_bytes(b"not a video")
    grey = np.full((30, 64, 64, 3), 128, np.uint8)
    write_video(run.videos / "base" / "3004.mp4", grey, np.zeros(30 * 640, np.float32))
    (run.videos / "base" / "3007.mp4").unlink()
    rows = evaluate(CONFIG, models, run, ExecutorConfig(workers=1)).to_pylist()
    status = {row["clip_id"]: row["status"] for row in rows if row["method"] == "base" and row["metric"] == "sync_c"}
    assert status["3001"].startswith("failed: ") and "3001.mp4" in status["3001"]
    assert status["3004"] == "no face: seen in 0 frames where 20 are needed"
    assert status["3007"].startswith("failed: ") and "3007.mp4" in status["3007"]
    scores = read_json(run.report / "scores.json")
    assert scores["methods"]["base"]["sync_c"]["coverage"] == 0.0
    assert scores["methods"]["adapter"]["sync_c"]["n"] == 3
    assert scores["methods"]["base"]["fid"]["status"] == "too few clips that every method has"


def test_images_videos_seeds_and_joins_are_read_where_the_manifest_has_them(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    clips = {name: draw_clip(seed, 3.2) for name, seed in (("own", 3001), ("other", 3004))}
    for name, clip in clips.items():
        write_video(run.videos / f"{name}.mp4", clip.frames, clip.audio)
    jump = clips["own"].frames.copy()
    jump[40:] = np.clip(jump[40:].astype(int) + 25, 0, 255)
    write_video(run.videos / "jump.mp4", jump, clips["own"].audio)
    write_json(run.videos / "jump.json", {"chunk_starts": [0, 40]})
    cv2.imwrite(str(run.videos / "own.png"), cv2.cvtColor(clips["own"].frames[0], cv2.COLOR_RGB2BGR))
    listed = [("jump", 1, "own"), ("jump", 2, "own"), ("other", 1, "own")]
    table = [
        {"method": "a", "clip_id": f"c{video}", "video": f"videos/{video}.mp4", "reference": "", "seed": seed}
        | {"audio": f"videos/{video}.mp4", "image": f"videos/{image}.png", "group": "one video"}
        for video, seed, image in listed
    ]
    pq.write_table(pa.Table.from_pylist(table), run.videos / "manifest.parquet")
    pack = model_paths()["face_detector"]
    models = {"face_detector": pack, "face_identity": pack / "rec_miniature.onnx"}
    rows = evaluate(CONFIG, models, run, ExecutorConfig(workers=1)).to_pylist()
    by_name = {(row["clip_id"], row["seed"], row["metric"]): row for row in rows}
    assert by_name["cjump", 1, "csim"]["value"] > by_name["cother", 1, "csim"]["value"] + 0.3
    assert by_name["cjump", 2, "seam_z"]["value"] > 3 and by_name["cjump", 2, "seam_z"]["n"] == 1
    assert by_name["cother", 1, "seam_z"]["status"].startswith("no seam")
    assert by_name["cjump", 1, "psnr"]["status"] == by_name["cjump", 1, "csim_truth"]["status"] == NOT_NAMED
    score = read_json(run.report / "scores.json")["methods"]["a"]["csim"]
    assert (score["n"], score["clips"], score["seed_clips"], score["seed_sd"]) == (2, 2, 1, 0.0)
    assert score["low"] is None  # one video says nothing of the spread
    pq.write_table(pa.Table.from_pylist([table[0], table[0]]), run.videos / "manifest.parquet")
    with pytest.raises(ManifestError, match="lists a/cjump/1 twice"):
        read_manifest(run)


def test_manifest_errors_name_what_is_missing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ManifestError, match="generate"):
        read_manifest(run)
    pq.write_table(pa.table({"method": ["a"], "clip_id": ["b"]}), run.videos / "manifest.parquet")
    with pytest.raises(ManifestError, match=r"\['video', 'reference', 'audio', 'seed'\]"):
        read_manifest(run)
