"""Sets drawn by video, the same for the same seed, and lists that notice when they are not what they say."""

from pathlib import Path

import numpy as np
import pytest

from curation.hdtf import SUBSETS
from curation.remote import WATCH
from eval.test_sets import (
    ListError,
    avspeech_set,
    face_crops,
    hdtf_set,
    read_test_set,
    small_world_set,
    write_test_set,
)


def clip_table(videos: int = 30) -> list[dict]:
    """Two clips of each video, of which every third shows a head only; videos 0 and 1 show the same."""
    return [
        {
            "clip_id": f"c{video}{part}",
            "video_id": f"v{video}",
            "t_start": 10.0 * part,
            "t_end": 10.0 * part + 5,
            "framing": "head" if video % 3 == 2 else "semi",
            "decision": "kept" if part else "rejected",
            "dup_group": "same" if video < 2 else None,
            "split": "test" if video % 5 == 0 else "train",
        }
        for video in range(videos)
        for part in range(2)
    ]


def test_a_draw_has_one_kept_semi_body_clip_per_video_and_depends_on_the_seed_alone() -> None:
    rows = clip_table()
    drawn = avspeech_set("avspeech_semi", rows, count=12)
    numbers = [int(clip.video_id[1:]) for clip in drawn.clips]
    assert len(set(numbers)) == 12 and all(n % 3 != 2 for n in numbers) and not {0, 1} <= set(numbers)
    assert all(clip.clip_id.endswith("1") and clip.end - clip.start == 5 for clip in drawn.clips)
    assert avspeech_set("avspeech_semi", rows[::-1], count=12) == drawn
    assert avspeech_set("avspeech_semi", rows, count=12, seed=1).clips != drawn.clips
    with pytest.raises(ValueError, match="there are 19"):  # twenty semi videos, two of which show the same
        avspeech_set("avspeech_semi", rows, count=20)


def test_faces_are_the_same_clips_under_another_rule_and_another_hash() -> None:
    semi, face = (avspeech_set(name, clip_table(), 5) for name in ("avspeech_semi", "avspeech_face"))
    assert semi.clips == face.clips and semi.sha256 != face.sha256 and "512 px" in face.rule


def test_face_crops_are_still_square_and_inside() -> None:
    frames = np.zeros((3, 120, 200, 3), np.uint8)
    frames[:, 40:80, 50:90] = 255
    boxes = np.array([[50, 40, 90, 80], [52, 40, 92, 80], [48, 40, 88, 80]])
    crops = face_crops(frames, boxes, 64)  # 64 px are 1.6 boxes of 40: nothing is scaled
    assert crops.shape == (3, 64, 64, 3)
    assert (crops[:, 12:52, 12:52] == 255).all() and crops.sum() == 3 * 40 * 40 * 3 * 255
    corner = face_crops(frames, boxes - [40, 30, 40, 30], 64)
    np.testing.assert_array_equal(corner, frames[:, :64, :64])
    assert face_crops(frames, np.tile([0, 0, 200, 120], (3, 1)), 512).shape == (3, 512, 512, 3)


def test_a_list_comes_back_and_one_that_was_changed_does_not(tmp_path: Path) -> None:
    drawn, path = avspeech_set("avspeech_semi", clip_table(), 5), tmp_path / "semi.csv"
    write_test_set(path, drawn)
    assert read_test_set(path) == drawn and path.read_text().splitlines()[1] == "clip_id,video_id,start,end"
    path.write_text(path.read_text().replace("15.000", "14.000", 1))
    with pytest.raises(ListError, match="fetch the list again"):
        read_test_set(path)
    path.write_text("clip_id,video_id\n")
    with pytest.raises(ListError, match="no list of a test set"):
        read_test_set(path)


def test_the_small_world_gives_its_held_out_clips() -> None:
    drawn = small_world_set(clip_table())
    assert [clip.video_id for clip in drawn.clips] == ["v0", "v10", "v15", "v20", "v25", "v5"]
    with pytest.raises(ValueError, match="None of 2 clips"):
        small_world_set([row | {"split": "train"} for row in clip_table(1)])


def test_hdtf_sets_are_named_spans_of_its_files(tmp_path: Path) -> None:
    files: dict[str, list[str]] = {f"{s}_{k}": [] for s in SUBSETS for k in ("video_url", "resolution", "crop_wh")}
    files |= {f"{subset}_annotion_time": [] for subset in SUBSETS}
    for number in range(105):
        name, subset = f"Name{number}", SUBSETS[number % 3]
        files[f"{subset}_video_url"].append(f"{name} {WATCH}{number:011d}")
        files[f"{subset}_resolution"].append(f"{name}.mp4 720")
        files[f"{subset}_annotion_time"].append(f"{name}.mp4 00:20-01:20")
        files[f"{subset}_crop_wh"].append(f"{name}_0.mp4 100 400 50 400")
    for name, lines in files.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    hundred, whole = hdtf_set("hdtf100", tmp_path), hdtf_set("hdtf400_15s", tmp_path)
    assert (len(hundred.clips), len(whole.clips)) == (100, 105)
    assert {clip.end - clip.start for clip in hundred.clips} == {10.0}
    assert {clip.end - clip.start for clip in whole.clips} == {15.0}
    assert hdtf_set("hdtf100", tmp_path, seed=1).sha256 != hundred.sha256
    assert hdtf_set("hdtf400_15s", tmp_path, seed=1).sha256 == whole.sha256
