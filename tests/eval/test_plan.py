"""The plan counts what evaluation will extract, and agrees with what it then does."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.executors.config import ExecutorConfig
from common.media.write import write_video
from common.runs import RunFolder
from eval.config import EvalConfig, FeatureConfig, ScoreConfig
from eval.job import evaluate
from eval.manifest import ManifestError
from eval.plan import plan_evaluation, plan_lines

CONFIG = EvalConfig(FeatureConfig(), ScoreConfig(resamples=20))


@pytest.fixture
def run(tmp_path):
    """Two videos of one method and their real ones; nobody has weights."""
    run = RunFolder(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for name in ("a", "b", "real_a", "real_b"):
        frames = np.repeat(rng.integers(0, 255, (1, 8, 8, 3), np.uint8), 80, axis=0).repeat(4, 1).repeat(4, 2)
        write_video(run.videos / f"{name}.mp4", frames, rng.normal(0, 0.1, 80 * 640).astype(np.float32))
    for clip in "ab":
        real = f"videos/real_{clip}.mp4"
        rows.append(
            {"method": "m", "clip_id": clip, "video": f"videos/{clip}.mp4", "reference": real, "audio": real, "seed": 0}
        )
    pq.write_table(pa.Table.from_pylist(rows), run.videos / "manifest.parquet")
    return run


def test_the_plan_is_what_happens(run):
    plan = plan_evaluation(CONFIG, {}, run)
    lines = {line.extractor: line for line in plan.lines}
    assert plan.methods == {"m": 2} and plan.videos_to_extract == 2 and plan.seconds is None
    assert (lines["course"].videos, lines["course"].cached, lines["course"].to_extract) == (2, 0, 2)
    assert lines["fid"].missing == ("fid_features",) and lines["fid"].to_extract == 0 and lines["fid"].videos == 4
    assert "fvd_slow" not in lines  # of the other protocol
    evaluate(CONFIG, {}, run, ExecutorConfig(workers=1))
    done = plan_evaluation(CONFIG, {}, run)
    assert done.videos_to_extract == 0 and done.seconds == 0
    assert all(line.cached == line.videos for line in done.lines if not line.missing)
    assert {path.parent.name for path in run.cache.glob("features/*/*.npz")} == {
        line.extractor for line in done.lines if line.cached
    }


def test_a_changed_video_is_extracted_again_and_the_time_is_estimated(run):
    evaluate(CONFIG, {}, run, ExecutorConfig(workers=1))
    write_video(run.videos / "a.mp4", np.zeros((80, 32, 32, 3), np.uint8), np.zeros(80 * 640, np.float32))
    plan = plan_evaluation(CONFIG, {}, run)
    assert plan.videos_to_extract == 1 and plan.seconds > 0
    words = "\n".join(plan_lines(plan))
    assert "1 videos to extract: about" in words and "no weights: sync_scorer; sync_c" in words


def test_without_a_manifest_there_is_nothing_to_plan(tmp_path):
    with pytest.raises(ManifestError):
        plan_evaluation(CONFIG, {}, RunFolder(tmp_path))
