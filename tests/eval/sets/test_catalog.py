"""Sets drawn by video, the same for the same seed, and lists that notice when they are not what they say."""

from pathlib import Path

import numpy as np
import pytest

from common.clips import write_clips
from common.runs import RunFolder
from curation.decide.split import read_split, write_split
from curation.sources.hdtf import SUBSETS
from curation.sources.remote import WATCH
from eval.sets.catalog import (
    LISTS,
    ListError,
    TestClip,
    TestSet,
    avspeech_set,
    crop_face,
    draw_set,
    face_square,
    find_list,
    hdtf_set,
    held_out,
    read_test_set,
    small_world_set,
    write_test_set,
)
from tests.curation.decide.drawn_rows import splits_of


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


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`clip_table` as a file."""
    path = tmp_path_factory.mktemp("run") / "clips.parquet"
    write_clips(path, clip_table())
    return path


def test_a_draw_has_one_kept_semi_body_clip_per_video_and_depends_on_the_seed_alone(table: Path) -> None:
    drawn = avspeech_set("avspeech_semi", table, count=12)
    numbers = [int(clip.video_id[1:]) for clip in drawn.clips]
    assert len(set(numbers)) == 12 and all(n % 3 != 2 for n in numbers) and not {0, 1} <= set(numbers)
    assert all(clip.clip_id.endswith("1") and clip.end - clip.start == 5 for clip in drawn.clips)
    assert avspeech_set("avspeech_semi", table, count=12) == drawn
    assert avspeech_set("avspeech_semi", table, count=12, seed=1).clips != drawn.clips
    with pytest.raises(ValueError, match="there are 19"):  # twenty semi videos, two of which show the same
        avspeech_set("avspeech_semi", table, count=20)


def test_a_drawn_set_can_be_kept_out_of_training(table: Path, tmp_path: Path) -> None:
    rows = clip_table()
    drawn = avspeech_set("avspeech_semi", table, count=19)
    write_split(tmp_path / "test.tsv", held_out(drawn))
    splits = splits_of(read_split(tmp_path / "test.tsv"), rows)
    assert {name for name, split in splits.items() if split == "test"} == {clip.clip_id for clip in drawn.clips}
    # Of the semi-body videos nothing is left, also not of the one that shows the same as a drawn one.
    assert {row["framing"] for row in rows if splits[row["clip_id"]] == "train"} == {"head"}


def test_faces_are_the_same_clips_under_another_rule_and_another_hash(table: Path) -> None:
    semi, face = (avspeech_set(name, table, 5) for name in ("avspeech_semi", "avspeech_face"))
    assert semi.clips == face.clips and semi.sha256 != face.sha256 and "512 px" in face.rule


def test_face_crops_are_still_square_and_inside() -> None:
    frames = np.zeros((3, 120, 200, 3), np.uint8)
    frames[:, 40:80, 50:90] = 255
    boxes = np.array([[50, 40, 90, 80], [52, 40, 92, 80], [48, 40, 88, 80]])
    assert face_square(boxes, 120, 200) == (38, 28, 64)  # 64 px are 1.6 boxes of 40: nothing is scaled
    crop = crop_face(frames[0], (38, 28, 64), 64)
    assert (crop[12:52, 12:52] == 255).all() and crop.sum() == 40 * 40 * 3 * 255
    assert face_square(boxes - [40, 30, 40, 30], 120, 200) == (0, 0, 64)
    assert face_square(np.tile([0, 0, 200, 120], (3, 1)), 120, 200) == (40, 0, 120)
    assert crop_face(frames[0], (40, 0, 120)).shape == (512, 512, 3)


def test_a_list_comes_back_and_one_that_was_changed_does_not(table: Path, tmp_path: Path) -> None:
    drawn, path = avspeech_set("avspeech_semi", table, 5), tmp_path / "semi.csv"
    write_test_set(path, drawn)
    assert read_test_set(path) == drawn and path.read_text().splitlines()[1] == "clip_id,video_id,start,end"
    path.write_text(path.read_text().replace("15.000", "14.000", 1))
    with pytest.raises(ListError, match="fetch the list again"):
        read_test_set(path)
    path.write_text("clip_id,video_id\n")
    with pytest.raises(ListError, match="no list of a test set"):
        read_test_set(path)
    away = TestSet("away", "", 0, (TestClip("../../c", "v", 0.0, 1.0),))
    write_test_set(path, away)
    with pytest.raises(ListError, match="clip id '../../c' is not"):
        read_test_set(path)


@pytest.mark.parametrize("content", [b"# \xe9\n", b"# [1]\nclip_id\n", b'# {"sha256": 5}\nclip_id\n', b"\0", b""])
def test_a_foreign_file_is_no_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ListError, match="a.csv"):
        read_test_set(tmp_path / "a.csv")


def test_sets_are_drawn_by_name_and_say_what_they_lack(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_clips(run.clips_parquet, clip_table())
    assert draw_set("small_world", run, None) == small_world_set(clip_table())
    assert draw_set("avspeech_face", run, None, 5, 3) == avspeech_set("avspeech_face", run.clips_parquet, 5, 3)
    for name, words in (("hdtf100", "--files FOLDER"), ("avspeech_semi", "--run RUN"), ("hdtf", "the sets are small")):
        with pytest.raises(ListError, match=words):
            draw_set(name, None, None)


def test_the_published_lists_are_what_they_say() -> None:
    lists = {path.stem: read_test_set(path) for path in sorted(LISTS.glob("*.csv"))}
    assert {name: len(each.clips) for name, each in lists.items()} == {
        "hdtf100": 100, "hdtf400_15s": 368, "small_world": 29,
    }  # fmt: skip
    assert all(name == each.name and len(set(each.clips)) == len(each.clips) for name, each in lists.items())
    hundred, whole = lists["hdtf100"].clips, lists["hdtf400_15s"].clips
    assert {clip.video_id for clip in hundred} < {clip.video_id for clip in whole}
    assert len({clip.video_id for clip in whole}) == 368
    assert {clip.end - clip.start for clip in hundred} == {10.0}
    assert max(clip.end - clip.start for clip in whole) == 15.0


def test_a_list_is_a_file_or_the_name_of_a_published_one(tmp_path: Path) -> None:
    assert find_list("hdtf100") == LISTS / "hdtf100.csv"
    (tmp_path / "a.csv").touch()
    assert find_list(str(tmp_path / "a.csv")) == tmp_path / "a.csv"
    with pytest.raises(FileNotFoundError, match="no list at b.csv.* hdtf100, hdtf400_15s, small_world"):
        find_list("b.csv")


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
