from pipelines.config import VideosConfig
from pipelines.generate.videos import plan_units


def _clip(number, side):
    return {"clip_id": f"c{number}", "sha256": f"h{number}", "caption": "x", "height": side, "width": side}


def test_every_method_gets_every_clip_with_the_same_noise_and_the_next_clips_audio():
    clips = [_clip(n, 64 if n < 5 else 96) for n in range(8)]
    units = plan_units(VideosConfig(batch=3), clips)
    for method in ("adapter", "swapped_audio", "base"):
        rows = [row for unit in units if unit["method"] == method for row in unit["clips"]]
        assert sorted(row["clip_id"] for row in rows) == [f"c{n}" for n in range(8)]
    seeds = {(row["clip_id"], row["seed"]) for unit in units for row in unit["clips"]}
    assert len(seeds) == 8
    assert all(row["other_clip_id"] != row["clip_id"] for unit in units for row in unit["clips"])
    assert max(len(unit["clips"]) for unit in units) == 3


def test_a_batch_has_one_frame_size():
    clips = [_clip(n, 64 if n % 2 else 96) for n in range(6)]
    for unit in plan_units(VideosConfig(batch=8), clips):
        size = unit["unit"].split("/")[1]
        assert {f"{clips[int(row['clip_id'][1:])]['height']}x" in size + "x" for row in unit["clips"]} == {True}
