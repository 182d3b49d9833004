import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.executors.config import ExecutorConfig
from common.ledger.store import Outcome
from common.media.write import write_video
from common.runs import RunFolder, hash_path, sha256_file
from common.shards.index import read_index
from common.shards.sample import ShardError
from common.shards.store import ShardReader
from latents.config import LatentsConfig
from latents.constants import read_constants
from latents.job import encode_clips, make_stage, placed, read_clip

CONFIG = LatentsConfig(buckets=((32, 32), (48, 32)), references=2, samples_per_shard=2)
HERE = ExecutorConfig(workers=1)
Encode = Callable[..., list[Outcome]]


def row(number: int, **changes: Any) -> dict[str, Any]:
    named = {"clip_id": f"clip{number}", "video_id": f"video{number}", "split": "train", "caption": "a man speaks"}
    return named | {"sha256": f"drawn {number}", "seed": number} | changes


class Drawn:
    """Draws a clip from its row instead of reading a file; remembers which, and is killed at `killed_at`."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.read: list[int] = []
        self.killed_at = killed_at

    def __call__(self, clip: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        if clip["seed"] == self.killed_at:
            raise KeyboardInterrupt
        if clip["seed"] < 0:
            raise ValueError("a clip that cannot be drawn")
        self.read.append(clip["seed"])
        rng = np.random.default_rng(clip["seed"])
        frames = rng.integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
        return frames, rng.standard_normal(9 * 640).astype(np.float32)


@pytest.fixture
def encode(encoder_folders: dict[str, Path]) -> Encode:
    def run(folder: Path, clips: list[dict[str, Any]], read: Drawn) -> list[Outcome]:
        return encode_clips(CONFIG, clips, encoder_folders, RunFolder(folder), HERE, read)

    return run


def shard_bytes(folder: Path) -> dict[str, str]:
    return {file.name: sha256_file(file) for file in (folder / "shards").iterdir()}


def test_drawn_clips_become_shards_in_the_order_of_their_names(encode: Encode, tmp_path: Path) -> None:
    outcomes = encode(tmp_path, [row(2), row(0), row(1, split="test")], Drawn())
    assert [outcome.unit for outcome in outcomes] == ["clip0", "clip1", "clip2"]
    index = read_index(tmp_path / "shards").to_pydict()
    assert index["clip_id"] == ["clip0", "clip1", "clip2"]
    assert index["split"] == ["train", "test", "train"]
    assert index["latent_frames"] == [3, 3, 3]
    tensors, meta = ShardReader(tmp_path / "shards").sample(1)
    assert tensors["latents"].shape == (16, 3, 4, 4)
    assert (meta["caption"], meta["video_id"], meta["frames"]) == ("a man speaks", "video1", 9)


def test_a_killed_job_resumes_and_ends_with_the_same_bytes(encode: Encode, tmp_path: Path) -> None:
    clips = [row(number) for number in range(5)]
    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "killed", clips, Drawn(killed_at=3))
    again = Drawn()
    encode(tmp_path / "killed", clips, again)
    assert again.read == [3, 4]
    encode(tmp_path / "whole", clips[::-1], Drawn())
    assert shard_bytes(tmp_path / "killed") == shard_bytes(tmp_path / "whole")


def test_nothing_is_encoded_twice_even_when_the_cache_was_thrown_away(encode: Encode, tmp_path: Path) -> None:
    clips = [row(0), row(1)]
    encode(tmp_path, clips, Drawn())
    before = shard_bytes(tmp_path)
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        file.unlink()
    again = Drawn()
    encode(tmp_path, clips, again)
    assert again.read == []
    assert shard_bytes(tmp_path) == before


def test_what_the_cache_lost_is_encoded_again_when_shards_must_be_packed(encode: Encode, tmp_path: Path) -> None:
    encode(tmp_path, [row(0), row(1)], Drawn())
    (next((tmp_path / "cache").rglob("clip1.safetensors"))).unlink()
    more = Drawn()
    encode(tmp_path, [row(0), row(1), row(2)], more)
    assert more.read == [1, 2]
    assert read_index(tmp_path / "shards").num_rows == 3


def test_only_a_changed_clip_is_encoded_again(encode: Encode, tmp_path: Path) -> None:
    encode(tmp_path, [row(0), row(1)], Drawn())
    changed = Drawn()
    encode(tmp_path, [row(0), row(1, caption="a woman with red hair")], changed)
    assert changed.read == [1]
    tensors, meta = ShardReader(tmp_path / "shards").sample(1)
    assert meta["caption"] == "a woman with red hair"
    assert len(tensors["text"]) == 6


def test_a_clip_that_fails_is_a_row_and_the_rest_is_encoded(encode: Encode, tmp_path: Path) -> None:
    outcomes = encode(tmp_path, [row(0), row(1, seed=-1), row(2)], Drawn())
    assert [outcome.state for outcome in outcomes] == ["kept", "failed", "kept"]
    assert "a clip that cannot be drawn" in outcomes[1].message
    assert read_index(tmp_path / "shards")["clip_id"].to_pylist() == ["clip0", "clip2"]


def test_clip_files_are_read_into_the_bucket_of_their_shape(encoder_folders: dict[str, Path], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    frames, wave = Drawn()(row(0))
    write_video(run.clips / "clip0.mp4", np.repeat(frames, 2, axis=1), wave / 5)
    encode_clips(CONFIG, [row(0)], encoder_folders, run, HERE)
    tensors, meta = ShardReader(run.shards).sample(0)
    assert tensors["latents"].shape == (16, 3, 6, 4)
    assert tensors["audio"].shape == (9, 3 * 16)
    assert (meta["height"], meta["width"]) == (48, 32)


def test_the_work_can_be_sent_to_other_processes(encoder_folders: dict[str, Path], tmp_path: Path) -> None:
    stage = make_stage(CONFIG, encoder_folders, {}, RunFolder(tmp_path), HERE, read_clip)
    sent = pickle.loads(pickle.dumps(stage))
    sent.load()
    assert sent == stage and sent.loaded is not None


def test_another_audio_encoder_encodes_no_frames_again_where_waveforms_are_stored(
    encoder_folders: dict[str, Path], tmp_path: Path
) -> None:
    config, run, other = replace(CONFIG, audio="waveform"), RunFolder(tmp_path / "run"), tmp_path / "other"
    encode_clips(config, [row(0)], encoder_folders, run, HERE, Drawn())
    tensors, meta = ShardReader(run.shards).window(0, 2)
    assert tensors["audio"].shape == (9 * 640,) and tensors["audio"].dtype == np.int16
    with tarfile.open(run.shards / "shard-000000.tar") as tar:
        member = tar.extractfile("clip0.tensors.safetensors")
        assert member is not None and hashlib.sha256(member.read()).hexdigest() == meta["sha256"]
    shutil.copytree(encoder_folders["audio_encoder"], other)
    (other / "note.txt").write_text("trained further")
    again = Drawn()
    encode_clips(config, [row(0)], encoder_folders | {"audio_encoder": other}, run, HERE, again)
    assert again.read == [] and read_constants(run.shards).audio_encoder == hash_path(other)


def test_a_damaged_file_of_the_cache_is_not_packed(encode: Encode, tmp_path: Path) -> None:
    encode(tmp_path, [row(0)], Drawn())
    file = next((tmp_path / "cache").rglob("clip0.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ShardError, match=r"Cached .*clip0.safetensors, which may be deleted, differs"):
        encode(tmp_path, [row(0), row(1)], Drawn())


@pytest.mark.parametrize(
    ("config", "executor", "expected"),
    [
        ({"device": "cpu"}, {}, ("cpu", "fp32")),
        ({"device": "cpu", "dtype": "bf16"}, {}, ("cpu", "bf16")),
        ({}, {"kind": "ray"}, ("cpu", "fp32")),
        ({}, {"kind": "ray", "gpus_per_worker": 0.5}, ("cuda", "bf16")),
        ({"dtype": "fp32"}, {"kind": "ray", "gpus_per_worker": 1}, ("cuda", "fp32")),
    ],
)
def test_workers_get_device_and_precision(
    config: dict[str, Any], executor: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert placed(replace(CONFIG, **config), ExecutorConfig(**executor)) == expected


def test_bf16_is_another_stage_with_almost_the_same_latents(encoder_folders: dict[str, Path], tmp_path: Path) -> None:
    read = []
    for dtype in ("fp32", "bf16"):
        encode_clips(
            replace(CONFIG, device="cpu", dtype=dtype), [row(0)], encoder_folders, RunFolder(tmp_path), HERE, Drawn()
        )
        read.append(ShardReader(tmp_path / "shards").sample(0)[0])
    exact, rounded = read
    assert np.array_equal(exact["audio"], rounded["audio"])  # wav2vec2 is always float32
    error = np.abs(exact["latents"].astype(np.float32) - rounded["latents"])
    assert 0 < error.max() < 0.1 * np.abs(exact["latents"]).max()


def test_a_bucket_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(400, 721\) is not a multiple of 16"):
        LatentsConfig(buckets=((400, 721),))
