import numpy as np

from miniature.world import HELD_OUT_SEED, draw_clip
from pipelines.small_world import drawn_rows, read_drawn


def test_held_out_clips_are_never_trained_on():
    train, val = drawn_rows(6, "train"), drawn_rows(3, "val")
    assert max(row["seed"] for row in train) < HELD_OUT_SEED <= min(row["seed"] for row in val)
    assert len({row["clip_id"] for row in train + val}) == 9


def test_a_row_draws_the_clip_its_caption_speaks_of():
    for row in drawn_rows(6, "train")[4:]:
        frames, wave = read_drawn(row)
        clip = draw_clip(row["seed"], 49 / 25, row["framing"])
        assert np.array_equal(frames, clip.frames) and len(wave) == 49 * 640
        assert row["caption"] == clip.caption and ("hands" in row["caption"]) == (row["framing"] == "half")
