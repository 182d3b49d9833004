"""Avatars of clips in the generate step: the clip's voice or another's, files that evaluation reads, faces refused."""

from pathlib import Path

import numpy as np
import pytest

from audioavatar.export import read_talk
from common.errors import InputError
from common.executors.config import ExecutorConfig
from common.media.index import probe
from common.media.marks import is_generated
from common.media.write import write_video
from common.runs import RunFolder
from eval.features.particles import particle_motion
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from pipelines.config import AvatarsConfig, VideosConfig
from pipelines.generate.avatars import make_avatars, talk_files
from pipelines.generate.videos import write_manifest

FRAMES = 12
QUICK = AvatarsConfig(size=32, steps=1, turntable=15.0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Two clips of drawn people, and one of nobody."""
    run = RunFolder(tmp_path)
    for number in range(2):
        clip = draw_clip(HELD_OUT_SEED + number, 0.6)
        write_video(run.clips / f"c{number}.mp4", clip.frames, clip.audio)
    write_video(run.clips / "nobody.mp4", np.zeros_like(clip.frames), clip.audio)
    return run


def test_a_clip_is_said_by_its_own_voice_and_by_anothers_and_nobody_is_refused(run: RunFolder) -> None:
    rows = [{"clip_id": name, "other_clip_id": other} for name, other in (("c0", "c1"), ("nobody", "c0"))]
    talks = {"avatar": rows, "swapped_avatar": rows[:1]}
    outcomes = make_avatars(QUICK, talks, None, FRAMES, 3, model_paths(), run, ExecutorConfig(workers=1))
    assert [(each.unit, each.state) for each in outcomes] == [
        ("avatar/c0", "kept"), ("avatar/nobody", "rejected"), ("swapped_avatar/c0", "kept"),
    ]  # fmt: skip
    own, other = (talk_files(run, f"{method}/c0") for method in talks)
    facts = probe(own["video"])
    assert (facts.frames, facts.width, facts.height) == (FRAMES, 64, 64) and is_generated(own["turned"])
    assert own["turned"].read_bytes() != own["video"].read_bytes() != other["video"].read_bytes()
    first, second = (read_talk(files["motion"]).motion.shift for files in (own, other))
    assert len(first) == FRAMES and float((first - second).abs().max()) > 0.1
    assert 0 < particle_motion(own["motion"])["arap"] < 1

    clips = [{"clip_id": row["clip_id"], "video_id": "v"} for row in rows]
    for name in ("c0", "nobody"):
        (run.videos / "ground_truth").mkdir(exist_ok=True)
        (run.videos / "ground_truth" / f"{name}.mp4").write_bytes(own["video"].read_bytes())
    config = VideosConfig(methods=("avatar",), avatars=QUICK)
    assert write_manifest(run, config, clips, [], 3) == {"ground_truth": 2, "avatar": 2}


def test_methods_of_avatars_need_their_settings() -> None:
    with pytest.raises(InputError, match="videos.avatars is not set"):
        VideosConfig(methods=("adapter", "avatar"))
