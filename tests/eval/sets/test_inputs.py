"""The inputs of a test set equal the frames and audio of its clips; a clip that cannot be cut is a row and no file."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from common.clips import read_clips, write_clips
from common.executors.config import ExecutorConfig
from common.media.audio import read_audio
from common.media.video import read_video
from common.media.write import write_video
from common.runs import RunFolder
from curation.config import PeopleConfig
from eval.sets.catalog import (
    FACE_RULE,
    HDTF_RULE,
    TEST_SET_FILE,
    WHOLE_RULE,
    ListError,
    TestClip,
    TestSet,
    read_test_set,
)
from eval.sets.inputs import CLIPS, SAMPLES, write_inputs
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip

FRAMES = 8
END = 2.0 + FRAMES / 25
NAMES = ("first", "second", "broken", "absent")
CHOSEN = TestSet("ours", WHOLE_RULE, 0, tuple(TestClip(name, f"v_{name}", 2.0, END) for name in NAMES))


@pytest.fixture(scope="module")
def curated(tmp_path_factory) -> Path:
    """A run with two of the four clips, under ids of its own, a file that is no video, and a clip of another span."""
    run, rows = RunFolder(tmp_path_factory.mktemp("curated")), []
    for number, name in enumerate((*NAMES[:3], "other")):
        path = run.clips / f"id{number}.mp4"
        drawn = draw(number)
        if name == "broken":
            path.write_bytes(b"no video")
        else:
            write_video(path, drawn.frames, drawn.audio)
        row = {"clip_id": path.stem, "video_id": f"v_{name}", "t_start": 2.0, "t_end": END, "duration": END - 2.0}
        rows.append(row | {"bytes_uri": f"clips/{path.name}", "caption": drawn.caption, "decision": "rejected"})
    rows[-1]["t_start"] = 2.04
    write_clips(run.clips_parquet, rows)
    return run.root


@pytest.fixture
def run(curated: Path, tmp_path: Path) -> RunFolder:
    """The run, to be changed."""
    return RunFolder(shutil.copytree(curated, tmp_path / "run"))


def draw(number: int) -> DrawnClip:
    """What a clip of the run shows, the first half a body."""
    return draw_clip(HELD_OUT_SEED + number, FRAMES / 25, "face" if number else "half")


def cut(run: RunFolder, out: Path, chosen: TestSet = CHOSEN) -> dict[str, tuple[str, str]]:
    """Clip -> state and reason."""
    outcomes = write_inputs(chosen, run, out, PeopleConfig(), model_paths()["face_detector"], ExecutorConfig(workers=1))
    return {end.unit: (end.state, end.reason) for end in outcomes}


def test_inputs_are_the_first_frame_the_audio_after_it_and_the_real_video(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cut(run, out) == {
        "first": ("kept", ""), "second": ("kept", ""), "broken": ("rejected", "not_a_video"),
        "absent": ("rejected", "not_in_run"),
    }  # fmt: skip
    clip = run.clips / "id0.mp4"
    frames, sound = read_video(clip), read_audio(clip)
    picture = cv2.cvtColor(cv2.imread(str(out / "pictures/first.png")), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(picture, frames[0])
    real = read_video(out / "real/first.mp4").astype(float)
    assert len(real) == FRAMES - 1
    nearest = [np.abs(frame - frames.astype(float)).mean(axis=(1, 2, 3)).argmin() for frame in real]
    assert nearest == list(range(1, FRAMES)) and np.abs(real - frames[1:]).mean() < 4
    assert len(sound) == 640 * FRAMES
    np.testing.assert_allclose(read_audio(out / "sounds/first.wav"), sound[640:], atol=2**-15)
    samples = [json.loads(line) for line in (out / SAMPLES).read_text("utf-8").splitlines()]
    first = {"name": "first", "image": "pictures/first.png", "audio": "sounds/first.wav"}
    assert samples[0] == first | {"prompt": read_clips(run.clips_parquet)[0]["caption"]} and len(samples) == 2
    rows = list(csv.DictReader((out / CLIPS).open()))
    assert [row["clip_id"] for row in rows] == ["first", "second"]
    assert all((out / rows[1][name]).is_file() for name in ("image", "audio", "reference"))
    assert rows[1]["group"] == "v_second" and read_test_set(out / TEST_SET_FILE) == CHOSEN


def test_run_again_only_what_was_lost_or_has_changed_is_made(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(run, out)
    lost, stays = out / "real/first.mp4", out / "real/second.mp4"
    content, time = lost.read_bytes(), stays.stat().st_mtime_ns
    lost.write_bytes(content[:-1])
    drawn = draw(9)
    write_video(run.clips / "id2.mp4", drawn.frames, drawn.audio)
    assert cut(run, out)["broken"] == ("kept", "")
    assert lost.read_bytes() == content and stays.stat().st_mtime_ns == time
    (run.clips / "id1.mp4").unlink()
    assert cut(run, out)["second"] == ("rejected", "not_in_run")
    assert not stays.exists() and "second" not in (out / SAMPLES).read_text("utf-8")


def test_a_folder_is_of_one_list_and_a_run_of_another_world_has_nothing(run: RunFolder, tmp_path: Path) -> None:
    cropped = TestSet("hdtf", HDTF_RULE, 0, CHOSEN.clips)
    assert cut(run, tmp_path / "hdtf", cropped)["first"] == ("rejected", "no_crop")
    with pytest.raises(ListError, match="holds hdtf with the hash .* and not ours"):
        cut(run, tmp_path / "hdtf")
    elsewhere = TestSet("away", WHOLE_RULE, 0, (TestClip("first", "v_first", 2.0, 2.4),))
    with pytest.raises(ListError, match="none of the 1 clips of away"):
        cut(run, tmp_path / "away", elsewhere)


def test_a_set_of_faces_shows_the_face(run: RunFolder, tmp_path: Path) -> None:
    faces = TestSet("faces", FACE_RULE, 0, CHOSEN.clips[:1])
    assert cut(run, tmp_path / "out", faces) == {"first": ("kept", "")}
    drawn = draw(0)
    assert read_video(tmp_path / "out/real/first.mp4").shape == (FRAMES - 1, 512, 512, 3)
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out/pictures/first.png")), cv2.COLOR_BGR2RGB)
    x0, y0, x1, y1 = np.median(drawn.boxes, axis=0)
    side = round(1.6 * max(x1 - x0, y1 - y0))
    left, top = round((x0 + x1 - side) / 2), max(0, round((y0 + y1 - side) / 2))
    shown = drawn.frames[0][top : top + side, left : left + side]
    near, far = (
        np.abs(cv2.resize(each, (512, 512)).astype(float) - picture).mean() for each in (shown, drawn.frames[0])
    )
    assert shown.shape == (side, side, 3) and near < far / 3


def test_a_still_background_shows_no_face(run: RunFolder, tmp_path: Path) -> None:
    write_video(run.clips / "id0.mp4", np.full((FRAMES, 64, 64, 3), 90, np.uint8), np.zeros(640 * FRAMES, np.float32))
    faces = TestSet("faces", FACE_RULE, 0, CHOSEN.clips[:1])
    assert cut(run, tmp_path / "out", faces) == {"first": ("rejected", "no_face")}
