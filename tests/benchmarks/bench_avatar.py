"""An avatar that talks: pixels by sparse pairs against every particle on every pixel, a talk against the first system.

The peers do more work for the same job: the naive rasteriser evaluates particles where nobody sees them, and the first
system makes the same clip by diffusion of video.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audioavatar.config import RasterConfig, ReliefConfig, SayConfig
from audioavatar.raster.projection import Splats, project
from audioavatar.raster.sparse import composite
from audioavatar.say import AudioAvatar
from common.constants import FPS
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip
from omniavatar.config import GENERATION_ROLES
from omniavatar.video.video_file import write_avatar_video
from tests.benchmarks.measure import Row, compare, cpu_seconds
from training.audioavatar.teach import OmniAvatarTeacher

SIDE, SECONDS = 128, 2.0
CONFIG = RasterConfig()


@pytest.fixture(scope="module")
def clip() -> DrawnClip:
    return draw_clip(HELD_OUT_SEED, SECONDS)


@pytest.fixture(scope="module")
def speaker(clip: DrawnClip) -> AudioAvatar:
    """More than 2,000 particles, as the aim of 25 frames a second has it."""
    paths, config = model_paths(), ReliefConfig(size=96, steps=20)
    made = AudioAvatar.from_image(clip.frames[0], paths["face_detector"], paths["audio_encoder"], config=config)
    assert len(made.avatar.particles) >= 2000
    return made


def naive(splats: Splats, width: int, height: int) -> Tensor:
    """Every particle on every pixel, nearest first, with the same constants: colour (H, W, C)."""
    order = splats.depth[0].argsort(stable=True)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    colour, light = torch.zeros(height, width, 3), torch.ones(height, width)
    for n in order.tolist():
        dx, dy = x - splats.centre[0, n, 0], y - splats.centre[0, n, 1]
        xx, xy, yy = splats.covariance[0, n].tolist()
        power = (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / (xx * yy - xy * xy) / 2
        alpha = (splats.opacity[0, n] * (-power).exp()).clamp_max(CONFIG.alpha_max)
        after = light * (1 - torch.where(alpha >= CONFIG.alpha_min, alpha, 0.0))
        seen = after > CONFIG.transmittance_min
        colour += torch.where(seen, light - after, 0.0)[..., None] * splats.colour[0, n]
        light = after
    return colour


def test_compositing(report: Callable[[Row], None], speaker: AudioAvatar) -> None:
    """About a hundredth of the pairs are seen; what they cost more than a dense pixel is what sorting them costs."""
    camera = speaker.avatar.camera.scaled(SIDE / max(speaker.avatar.size))
    with torch.inference_mode():
        splats = project(speaker.avatar.particles, camera, CONFIG.blur, CONFIG.near)

        def ours() -> Tensor:
            return composite(splats, camera.width, camera.height, CONFIG)[0][0]

        def peer() -> Tensor:
            return naive(splats, camera.width, camera.height)

        assert float((ours() - peer()).abs().max()) < 1e-4
        what = f"avatar, a frame of {len(speaker.avatar.particles)} particles, {SIDE}x{SIDE}"
        report(compare(what, "all pixels x particles", ours, peer, 0.10, 3))


def test_a_talk(report: Callable[[Row], None], speaker: AudioAvatar, clip: DrawnClip, tmp_path: Path) -> None:
    """Both make an mp4 of the picture and the voice; the avatar at four times the pixels. Models are loaded, the avatar
    is built. An aim of a fifth is 25 frames a second where the first system makes 5."""
    paths = {role: path for role, path in model_paths().items() if role in GENERATION_ROLES}
    teacher = OmniAvatarTeacher.from_pretrained(paths)

    def ours() -> None:
        speaker.say(clip.audio, SayConfig(longest_side=SIDE)).save(tmp_path / "avatar.mp4")

    def peer() -> None:
        frames = teacher.generate(clip.frames[0], clip.audio, clip.caption, seed=1)
        write_avatar_video(tmp_path / "teacher.mp4", frames, clip.audio)

    peer()
    fps = SECONDS * FPS / min(cpu_seconds(ours) for _ in range(3))
    what = f"avatar, {SECONDS:.0f} s of voice ({fps:.0f} frames a core-second)"
    report(compare(what, "first system, 64x64", ours, peer, 1.0, 3))
