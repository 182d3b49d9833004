"""Teacher clips through the first system's own pipeline: kept, not made twice, made again when settings change."""

from pathlib import Path

import pytest
import torch

from audioavatar.config import TeacherConfig
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from training.audioavatar.teach import OmniAvatarTeacher, read_clip, teach


@pytest.fixture(scope="module")
def teacher() -> OmniAvatarTeacher:
    return OmniAvatarTeacher.from_pretrained(model_paths(), TeacherConfig(steps=1, chunk_frames=17, audio_guidance=1.0))


def test_clips_are_kept_and_made_again_only_when_something_changes(teacher: OmniAvatarTeacher, tmp_path: Path) -> None:
    drawn = draw_clip(1_000_000, 0.36)
    voices = [("a", draw_clip(101, 0.36).audio, 1)]
    (path,) = teach(teacher, drawn.frames[0], voices, drawn.caption, tmp_path)
    clip = read_clip(path)
    assert clip.frames.shape == (9, 64, 64, 3) and clip.frames.dtype == torch.uint8
    assert torch.equal(clip.wave, torch.from_numpy(voices[0][1]))
    before, content = path.stat().st_mtime_ns, path.read_bytes()
    teach(teacher, drawn.frames[0], voices, drawn.caption, tmp_path)
    assert path.stat().st_mtime_ns == before
    path.unlink()  # as if the process had been killed before
    teach(teacher, drawn.frames[0], voices, drawn.caption, tmp_path)
    assert path.read_bytes() == content
    teach(teacher, drawn.frames[0], [("a", voices[0][1], 2)], drawn.caption, tmp_path)
    assert path.read_bytes() != content
