"""Shards of samples as large as real ones (12 MB: 153 frames of 480 x 832), against webdataset on the same tars."""

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import webdataset

from common.shards.store import ShardReader, ShardWriter
from tests.benchmarks.measure import Row, compare

SAMPLES = 8
Sample = tuple[dict[str, np.ndarray], dict[str, Any]]


@pytest.fixture(scope="module")
def samples() -> dict[str, Sample]:
    """Clip id -> tensors and metadata."""
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32).astype(np.float16)

    def draw(number: int) -> Sample:
        tensors = {"latents": noise(16, 39, 60, 104), "text": noise(100, 4096), "audio": noise(153, 10752)}
        return tensors, {"video_id": f"v{number}", "split": "train"}

    return {f"clip{number}": draw(number) for number in range(SAMPLES)}


@pytest.fixture(scope="module")
def folder(samples: dict[str, Sample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All samples in one shard."""
    folder = tmp_path_factory.mktemp("shards")
    _write(folder, samples)
    return folder


def test_shard_write(report: Callable[[Row], None], samples: dict[str, Sample], tmp_path: Path) -> None:
    """Ours makes checksums, an index and waits for the disk; the peer writes the same tensors and no more.

    Each removes its last output first: both then reuse the memory of the file cache, as in a long job.
    """
    folder, tar = tmp_path / "ours", tmp_path / "peer.tar"

    def ours() -> None:
        rmtree(folder, ignore_errors=True)
        _write(folder, samples)

    def peer() -> None:
        tar.unlink(missing_ok=True)
        with webdataset.TarWriter(str(tar)) as writer:
            for clip_id, (tensors, meta) in samples.items():
                encoded = {"tensors.safetensors": safetensors.numpy.save(tensors), "meta.json": meta}
                writer.write({"__key__": clip_id} | encoded)

    ours()
    peer()
    for own, (tensors, meta) in zip(_plain(folder / "shard-000000.tar"), _plain(tar), strict=True):
        _assert_equal(own, (tensors | {"latents": tensors["latents"].swapaxes(0, 1)}, meta))
    # Both hand every byte to the kernel, which is most of it; checksums, index and syncs are ours alone.
    report(compare("shards, write 8 x 12 MB", "webdataset TarWriter", ours, peer, aim=0.6))


def test_shard_read(report: Callable[[Row], None], folder: Path) -> None:
    """Every sample once, decoded; ours is checked against its checksums, the peer's is not."""

    def ours() -> Iterator[Sample]:
        reader = ShardReader(folder)
        return (reader.sample(number) for number in range(len(reader)))

    def peer() -> Iterator[Sample]:
        return _plain(folder / "shard-000000.tar")

    for own, other in zip(ours(), peer(), strict=True):
        _assert_equal(own, other)
    report(compare("shards, read 8 of 8 in order", "webdataset", lambda: _drain(ours()), lambda: _drain(peer()), 0.25))


def test_shard_jump(report: Callable[[Row], None], folder: Path) -> None:
    """The last sample of the shard alone, which a drawn order or a resumed run asks for; a tar is read up to it."""

    def ours() -> Sample:
        return ShardReader(folder).sample(SAMPLES - 1)

    def peer() -> Sample:
        return next(islice(_plain(folder / "shard-000000.tar"), SAMPLES - 1, None))

    _assert_equal(ours(), peer())
    report(compare("shards, read the last of 8", "webdataset", ours, peer, aim=0.25))


def test_shard_window(report: Callable[[Row], None], folder: Path) -> None:
    """The first 8 of 39 latent frames of every sample, as a token cap leaves them; a tar is read whole."""

    def ours() -> Iterator[Sample]:
        reader = ShardReader(folder)
        return (reader.window(number, 8) for number in range(len(reader)))

    def peer() -> Iterator[Sample]:
        for tensors, meta in _plain(folder / "shard-000000.tar"):
            window = {"latents": tensors["latents"][:, :8], "audio": tensors["audio"][:29]}
            yield tensors | window, meta

    for own, other in zip(ours(), peer(), strict=True):
        _assert_equal(own, other)
    what = "shards, 8 of 39 latent frames of 8"
    report(compare(what, "webdataset", lambda: _drain(ours()), lambda: _drain(peer()), aim=0.15))


def _write(folder: Path, samples: dict[str, Sample]) -> None:
    with ShardWriter(folder, SAMPLES) as writer:
        for clip_id, (tensors, meta) in samples.items():
            writer.add(clip_id, tensors, meta)


def _plain(tar: Path) -> Iterator[Sample]:
    """What a webdataset user would write."""
    for sample in webdataset.WebDataset([str(tar)], shardshuffle=False, empty_check=False):
        tensors = safetensors.numpy.load(sample["tensors.safetensors"])
        yield tensors | {"latents": tensors["latents"].swapaxes(0, 1)}, json.loads(sample["meta.json"])


def _drain(samples: Iterator[Sample]) -> None:
    for _ in samples:
        pass


def _assert_equal(own: Sample, other: Sample) -> None:
    assert own[1] == other[1] and set(own[0]) == set(other[0])
    for name, array in own[0].items():
        np.testing.assert_array_equal(array, other[0][name])
