"""Lists of videos that others made become a manifest, or one sentence about the line that is wrong."""

import json

import numpy as np
import pytest

from common.media.write import write_video
from common.runs import RunFolder
from eval.import_videos import import_videos
from eval.manifest import ManifestError, read_manifest
from eval.sets.catalog import TEST_SET_FILE, TestClip, TestSet, read_test_set, write_test_set


@pytest.fixture
def folder(tmp_path):
    """Two real videos and what one system made of the first."""
    for name in ("real/a.mp4", "real/b.mp4", "theirs/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_video(tmp_path / name, np.zeros((2, 32, 32, 3), np.uint8), np.zeros(1280, np.float32))
    return tmp_path


def test_csv_and_json_lines_give_the_same_manifest_with_the_real_videos_in_it(folder):
    lines = [
        {"method": "theirs", "clip_id": clip, "video": f"theirs/{clip}.mp4", "reference": f"real/{clip}.mp4"}
        for clip in "ab"
    ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    heads = ",".join(lines[0])
    (folder / "list.csv").write_text("\n".join([heads, *(",".join(line.values()) for line in lines)]) + "\n")
    runs = [RunFolder(folder / kind) for kind in ("csv", "jsonl")]
    for run in runs:
        assert import_videos(folder / f"list.{run.root.name}", run) == {"theirs": 2, "ground_truth": 2}
    rows = read_manifest(runs[0])
    assert rows == read_manifest(runs[1])
    # The second video of theirs is not there: that is its failure, to be judged as one.
    assert [(row["method"], row["video"]) for row in rows if row["clip_id"] == "b"] == [
        ("ground_truth", str(folder / "real/b.mp4")), ("theirs", str(folder / "theirs/b.mp4")),
    ]  # fmt: skip
    assert rows[0]["audio"] == "" and rows[0]["seed"] == 0


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "method,clip_id\nm,c\n", "Video 1 .* lacks video"),
        ("l.csv", "method,clip_id,video,fps\nm,c,v,25\n", "unknown column fps"),
        ("l.csv", "method,clip_id,video,reference\nm,c,v,nowhere.mp4\n", "reference .*nowhere.mp4 does not exist"),
        ("l.csv", "method,clip_id,video,seed\nm,c,v,one\n", "seed is 'one'"),
        ("l.csv", "method,clip_id,video\n", "lists no video"),
        ("l.jsonl", "method,clip_id\n", "neither CSV nor JSON lines"),
        ("l.jsonl", "[1]\n", "not a JSON object"),
    ],
)
def test_a_wrong_list_is_refused_in_one_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError, match=message):
        import_videos(tmp_path / name, RunFolder(tmp_path / "run"))


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.csv does not exist"):
        import_videos(tmp_path / "nowhere.csv", RunFolder(tmp_path / "run"))


def test_folders_of_methods_fill_in_a_list_of_clips_and_its_test_set_goes_along(folder):
    run, path = RunFolder(folder / "run"), folder / "clips.csv"
    path.write_text("clip_id,reference,group\na,real/a.mp4,x\nb,real/b.mp4,y\n")
    chosen = TestSet("pair", "whole", 0, tuple(TestClip(name, f"v{name}", 0.0, 1.0) for name in "ab"))
    write_test_set(folder / TEST_SET_FILE, chosen)
    made = {"theirs": folder / "theirs", "copy": folder / "real"}
    assert import_videos(path, run, made) == {"theirs": 2, "copy": 2, "ground_truth": 2}
    rows = {(row["method"], row["clip_id"]): row for row in read_manifest(run)}
    assert rows["theirs", "b"]["video"] == str(folder / "theirs/b.mp4") and rows["copy", "b"]["group"] == "y"
    assert read_test_set(run.root / TEST_SET_FILE) == chosen
    (folder / TEST_SET_FILE).unlink()
    import_videos(path, run, made)
    assert not (run.root / TEST_SET_FILE).exists()


def test_a_folder_without_videos_and_a_list_that_has_some_are_refused(folder):
    path = folder / "clips.csv"
    path.write_text("clip_id,reference\na,real/a.mp4\n")
    with pytest.raises(ManifestError, match="nowhere has none of the 1 videos of ours"):
        import_videos(path, RunFolder(folder / "run"), {"ours": folder / "nowhere"})
    path.write_text("clip_id,method,video\na,m,theirs/a.mp4\n")
    with pytest.raises(ManifestError, match="has a method in its lines already"):
        import_videos(path, RunFolder(folder / "run"), {"ours": folder / "real"})
