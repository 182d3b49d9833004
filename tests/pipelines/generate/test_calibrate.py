from pathlib import Path

import numpy as np
import pytest

from common.clips import write_clips
from common.errors import InputError
from common.runs import RunFolder
from miniature.world.clips import draw_clip
from omniavatar.video.video_file import write_avatar_video
from pipelines.generate.calibrate import Calibration, Trial, clip_requests, listed_requests


def test_the_table_ends_with_the_setting_to_generate_with() -> None:
    trials = (Trial(0.05, 12, 100.0, 100.0), Trial(0.2, 8, 48.66, 41.2))
    lines = list(Calibration((300.129, -1e-5, 0.5), 0.007, 0.161, 12, trials).lines())
    assert "0.161" in lines[0] and "0.007" in lines[0]
    assert [line.split() for line in lines[2:4]] == [
        ["0.05", "12", "of", "12", "100.0", "100.0", "dB"],
        ["0.2", "8", "of", "12", "48.7", "41.2", "dB"],
    ]
    assert lines[-1].startswith('--set "generate.cache_polynomial=[300.129,-1e-05,0.5]"')


def test_held_out_clips_are_first_frame_audio_and_caption(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = []
    for number, (decision, split, seconds) in enumerate(
        [("kept", "train", 1), ("rejected", "test", 1), ("kept", "test", 0.2), ("kept", "test", 1), ("kept", "test", 1)]
    ):
        rows.append({"clip_id": f"c{number}", "decision": decision, "split": split, "duration": float(seconds)})
        rows[-1] |= {"caption": f"person {number}"}
    drawn = draw_clip(5, seconds=1)
    write_clips(run.clips_parquet, rows)
    write_avatar_video(run.clips / "c3.mp4", drawn.frames, drawn.audio)
    (one,) = clip_requests(run, 1, 8)
    assert one.prompt == "person 3" and len(one.wave) == 8 * 640
    assert np.abs(one.image.astype(int) - drawn.frames[0]).mean() < 6
    with pytest.raises(ValueError, match="no kept test clip of 49 frames .* --list"):
        clip_requests(run, 1, 48)
    with pytest.raises(ValueError, match="no kept test clip"):
        clip_requests(RunFolder(tmp_path / "none"), 1, 8)


def test_a_sample_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    rows = {"list.csv": ("prompt,seconds\na man,1", "a_man has no image"), "list.txt": ("a@@b@@c@@d", "4 fields")}
    for name, (text, words) in rows.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=words):
            listed_requests(tmp_path / name)
