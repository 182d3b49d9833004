from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from omniavatar.config import GenerateConfig
from omniavatar.generate import stream_video
from omniavatar.models import AvatarModels
from omniavatar.video.chunk_cache import ChunkCache
from omniavatar.video.chunks import ClipRequest, plan_chunks

CONFIG = GenerateConfig(
    steps=1, shift=2.0, text_guidance=1.0, audio_guidance=1.0, overlap=5, blend=0, chunk_frames=13, height=32,
    width=32,
)  # fmt: skip
IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
WAVE = (np.random.default_rng(1).standard_normal(30 * 640) * 0.1).astype(np.float32)


def pieces(models: AvatarModels, folder: Path | None, **changes: object) -> Iterator[np.ndarray]:
    return stream_video(models, IMAGE, WAVE, "a man", replace(CONFIG, **changes), folder)


@pytest.mark.parametrize("kind", [{}, {"overlap_kind": "latent", "colour_match": "none"}])
def test_a_stopped_video_goes_on_behind_its_last_whole_chunk(
    tiny_models: AvatarModels, tmp_path: Path, kind: dict[str, object]
) -> None:
    expected = np.concatenate(list(pieces(tiny_models, None, **kind)))
    begun = pieces(tiny_models, tmp_path, **kind)
    next(begun), next(begun)
    begun.close()
    stored = sorted(tmp_path.rglob("*.safetensors"))
    assert [file.name for file in stored] == ["chunk_0000.safetensors", "chunk_0001.safetensors"]
    times = [file.stat().st_mtime_ns for file in stored]
    assert np.array_equal(np.concatenate(list(pieces(tiny_models, tmp_path, **kind))), expected)
    assert [file.stat().st_mtime_ns for file in stored] == times
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(plan_chunks(30, 13, 5))


def test_whatever_decides_the_pixels_names_the_folder(tiny_models: AvatarModels, tmp_path: Path) -> None:
    request = ClipRequest(IMAGE, WAVE, "a man")
    requests = [request, request._replace(prompt="b"), request._replace(seed=1), request._replace(wave=WAVE * 0.5)]
    folders = [ChunkCache.of(tmp_path, tiny_models, each, CONFIG).folder for each in requests]
    folders += [ChunkCache.of(tmp_path, replace(tiny_models, identity="x"), request, CONFIG).folder]
    folders += [ChunkCache.of(tmp_path, tiny_models, request, replace(CONFIG, blend=4)).folder]
    assert len(set(folders)) == 6
    assert ChunkCache.of(tmp_path, tiny_models, request._replace(seed=CONFIG.seed), CONFIG).folder == folders[0]
    assert ChunkCache.of(None, tiny_models, request, CONFIG).load(plan_chunks(1, 13, 5)[0]) is None
