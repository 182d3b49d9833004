import numpy as np

from common.clips import read_clips
from common.executors.config import ExecutorConfig
from common.media.video import read_video
from common.runs import RunFolder, sha256_file
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from pipelines.config import DrawnConfig
from pipelines.drawn import draw_kept_clips, drawn_rows


def test_held_out_clips_are_never_trained_on():
    train, test = drawn_rows(6, "train"), drawn_rows(3, "test")
    assert max(row["seed"] for row in train) < HELD_OUT_SEED <= min(row["seed"] for row in test)
    assert len({row["clip_id"] for row in train + test}) == 9


def test_clips_and_rows_are_those_that_curation_would_leave(tmp_path):
    run = RunFolder(tmp_path)
    draw_kept_clips(DrawnConfig(4, 2, 0.4), run, ExecutorConfig(workers=1))
    rows = read_clips(run.clips_parquet)
    assert sorted(row["split"] for row in rows) == ["test"] * 2 + ["train"] * 4
    for row in rows:
        path = run.root / row["bytes_uri"]
        assert row["decision"] == "kept" and row["sha256"] == sha256_file(path)
    clip = draw_clip(0, 0.4, "half")
    half = next(row for row in rows if row["clip_id"] == "drawn_half_0000000")
    assert half["caption"] == clip.caption and "hands" in half["caption"]
    difference = read_video(run.clips / "drawn_half_0000000.mp4").astype(float) - clip.frames
    assert np.abs(difference).mean() < 6 and len(difference) == 10


def test_a_deleted_file_is_drawn_again_and_the_others_are_left_alone(tmp_path):
    run, config, executor = RunFolder(tmp_path), DrawnConfig(2, 1, 0.2), ExecutorConfig(workers=1)
    draw_kept_clips(config, run, executor)
    first, *others = sorted(run.clips.glob("*.mp4"))
    before, table = first.read_bytes(), run.clips_parquet.read_bytes()
    first.unlink()
    times = [path.stat().st_mtime_ns for path in others]
    draw_kept_clips(config, run, executor)
    assert first.read_bytes() == before and run.clips_parquet.read_bytes() == table
    assert [path.stat().st_mtime_ns for path in others] == times
