import numpy as np
import pytest
import torch

from omniavatar.config import GenerateConfig
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import ClipRequest
from omniavatar.video.scene import chunk_noise, frame_size, frames_of, prepare

CONFIG = GenerateConfig(height=32, width=32)


def test_noise_belongs_to_its_chunk_and_seed() -> None:
    shape = (16, 2, 4, 4)
    assert torch.equal(chunk_noise(42, 3, shape), chunk_noise(42, 3, shape))
    assert not torch.equal(chunk_noise(42, 3, shape), chunk_noise(42, 4, shape))
    assert not torch.equal(chunk_noise(42, 3, shape), chunk_noise(43, 3, shape))


def test_a_frame_for_every_640_samples_begun() -> None:
    assert [frames_of(np.zeros(n, np.float32)) for n in (1, 640, 641, 16_000 * 600)] == [1, 1, 2, 15_000]
    with pytest.raises(ValueError, match="not empty"):
        frames_of(np.zeros((2, 640), np.float32))


def test_a_batch_is_encoded_once_with_the_audio_after_one_zero_frame(tiny_models: AvatarModels) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 40, 32, 3)).astype(np.uint8)
    waves = rng.standard_normal((2, 5 * 640)).astype(np.float32)
    waves[1] = 0
    scene = prepare(tiny_models, [ClipRequest(i, w, "a") for i, w in zip(images, waves, strict=True)], CONFIG, 8)
    assert scene.reference.shape == (2, 16, 1, 4, 4) and scene.images.shape == (2, 3, 32, 32)
    assert scene.audio is not None and not scene.audio[:, 0].any() and not scene.audio[1].any()
    assert torch.equal(scene.audio[0, 1:], tiny_models.audio_encoder.encode(waves[0], 8))


def test_sizes_come_from_the_config_or_the_bucket(tiny_models: AvatarModels) -> None:
    image = np.zeros((900, 1600, 3), np.uint8)
    assert frame_size(tiny_models, image, GenerateConfig()) == (400, 720)
    assert frame_size(tiny_models, image, CONFIG) == (32, 32)
    with pytest.raises(ValueError, match="multiples of 16"):
        frame_size(tiny_models, image, GenerateConfig(height=40, width=32))
