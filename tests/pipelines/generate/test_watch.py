import json
import shutil
from dataclasses import replace

import cv2
import pytest

from common.executors.config import ExecutorConfig
from common.media.marks import read_marks
from common.media.video import read_video
from common.process.locks import RunHeldError
from common.progress import MetricLog
from common.runs import RunFolder
from miniature.weights import model_paths
from pipelines.config import DrawnConfig, SamplesConfig
from pipelines.drawn import draw_kept_clips
from pipelines.generate.watch import NothingToSampleError, exported, watch
from pipelines.recipe import read_recipe
from tests.common.process.test_locks import holder

SAMPLING = replace(read_recipe("demo").generate, steps=2, text_guidance=1.0, audio_guidance=1.0)
CONFIG = SamplesConfig(clips=2, frames=28)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two held-out clips and two exports of one adapter, sampled."""
    run = RunFolder(tmp_path_factory.mktemp("watched"))
    draw_kept_clips(DrawnConfig(train=0, test=4, seconds=29 / 25), run, ExecutorConfig(workers=1))
    for step in (10, 20):
        shutil.copytree(model_paths()["adapter"], run.checkpoints / "adapters" / f"step-{step:08d}")
    watch(CONFIG, SAMPLING, model_paths(), run, stop=lambda: True)
    return run


def test_every_export_is_sampled_with_its_own_and_with_swapped_audio(run):
    rows = MetricLog(run.logs / "sample_videos.jsonl").rows()
    assert [(row["step"], row["sound"]) for row in rows] == [
        (step, sound) for step in (10, 20) for sound in ("right", "right", "swapped", "swapped")
    ]
    assert all(row["status"] == "ok" and row["sync_c"] > 0 for row in rows)
    # One adapter, one noise: the two exports must sample alike, and the two sounds must not.
    assert [row["sync_c"] for row in rows[:4]] == [row["sync_c"] for row in rows[4:]]
    assert rows[0]["sync_d"] != rows[2]["sync_d"]


def test_the_videos_are_there_to_be_looked_at(run):
    videos = sorted((run.videos / "samples" / "step-00000020").rglob("*.mp4"))
    marks = [json.loads(read_marks(video)["generator"]) for video in videos]
    assert all(mark == marks[0] and len(mark["models"]["adapter"]) == 16 for mark in marks)
    assert [video.parent.name for video in videos] == ["right", "right", "swapped", "swapped"]
    assert read_video(videos[0]).shape == (28, 64, 64, 3)
    assert cv2.imread(str(run.report / "training.png")).shape[1] > 800


def test_a_second_one_is_told_who_samples_the_run(run):
    process = holder(run.videos / "samples")
    with pytest.raises(RunHeldError, match="samples is being written by omniavatar curate"):
        watch(CONFIG, SAMPLING, model_paths(), run, stop=lambda: True)
    process.communicate("")


def test_it_goes_on_behind_what_was_sampled(run):
    log = MetricLog(run.logs / "sample_videos.jsonl")
    before = log.rows()
    log.truncate(10)
    log.write(**{**before[4], "sync_c": -1.0})  # what a killed process leaves of an adapter is made again
    log.close()
    untouched = run.videos / "samples" / "step-00000010" / "right"
    times = [path.stat().st_mtime_ns for path in sorted(untouched.iterdir())]
    watch(CONFIG, SAMPLING, model_paths(), run, stop=lambda: True)
    assert MetricLog(run.logs / "sample_videos.jsonl").rows() == before
    assert [path.stat().st_mtime_ns for path in sorted(untouched.iterdir())] == times


def test_folders_that_are_no_export_are_passed_over(tmp_path):
    run = RunFolder(tmp_path)
    for name in ("step-00000003", "step-00000003.partial", "other"):
        (run.checkpoints / "adapters" / name).mkdir(parents=True)
    assert [step for step, _ in exported(run)] == [3]


def test_without_an_export_it_says_how_to_get_one(run, tmp_path):
    bare = RunFolder(tmp_path)
    shutil.copytree(run.clips, bare.clips, dirs_exist_ok=True)
    shutil.copy(run.clips_parquet, bare.clips_parquet)
    with pytest.raises(NothingToSampleError, match="train with checkpoint.export_every_steps above 0"):
        watch(CONFIG, SAMPLING, model_paths(), bare, stop=lambda: True)


def test_without_held_out_clips_it_says_what_to_do(tmp_path):
    run = RunFolder(tmp_path)
    draw_kept_clips(DrawnConfig(train=1, test=1, seconds=0.2), run, ExecutorConfig(workers=1))
    with pytest.raises(NothingToSampleError, match="lower samples.frames or hold out more clips"):
        watch(CONFIG, SAMPLING, model_paths(), run, stop=lambda: True)
