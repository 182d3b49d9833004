"""Lists of videos that others made become a manifest, or one sentence about the line that is wrong."""

import json

import numpy as np
import pytest

from common.media import write_video
from common.runs import RunFolder
from eval.foreign import import_videos
from eval.job import ManifestError, read_manifest


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
