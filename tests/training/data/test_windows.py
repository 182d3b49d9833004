import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from common.runs import hash_path
from common.shards.store import ShardReader, ShardWriter
from latents.config import AudioKind
from latents.constants import Constants, to_samples, to_wave, write_constants
from omniavatar.encoders.audio import drop_duplicate, load_audio_encoder
from training.config import DataConfig
from training.data.buckets import Bucket
from training.data.windows import BadSamplesError, ClipWindows, MicroBatch, Store, index_digest, stream

Named = list[list[tuple[str, int]]]
FOUR = DataConfig(batch=2, micro_batches=4)
TENSORS = ("latents", "references", "text", "audio")


def tokens(bucket: Bucket) -> float:
    return bucket.tokens


def named(micros: list[MicroBatch]) -> Named:
    """Names and positions of the samples, one list per micro-batch."""
    return [
        [(sample.clip_id, slot) for sample, slot in zip(micro.samples, micro.positions, strict=True)]
        for micro in micros
    ]


def read_clips(shards: Path, start: int, steps: int, rank: int, world: int, config: DataConfig = FOUR) -> Named:
    windows = ClipWindows(shards, config, seed=3, cost=tokens)
    return [batch for micros in islice(stream(windows, start, rank, world), steps) for batch in named(micros)]


def clips_of_step(windows: ClipWindows, step: int) -> list[str]:
    """The clips drawn for all ranks' micro-batches of one step (from 0)."""
    return [windows.clip_ids[row] for slot in windows.batch_slots(step) for row in slot.rows]


def damage(shards: Path, folder: Path, *clips: str) -> Path:
    """A copy of a shard folder in which single bytes of these clips' latents differ."""
    folder.mkdir()
    for file in shards.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for row in ShardReader(shards).index.to_pylist():
        if row["clip_id"] in clips:
            with open(folder / row["shard"], "r+b") as tar:
                slot = row["offset"] + row["head_bytes"] + row["whole_bytes"] + 5
                tar.seek(slot)
                byte = tar.read(1)[0]
                tar.seek(slot)
                tar.write(bytes([byte ^ 0xFF]))
    return folder


def test_the_samples_of_a_step_are_the_same_at_any_number_of_ranks_and_threads(mixed_shards: Path) -> None:
    alone = read_clips(mixed_shards, 0, 5, 0, 1)
    assert read_clips(mixed_shards, 0, 5, 0, 1, replace(FOUR, readers=5)) == alone
    for world in (2, 4):
        ranks = [iter(read_clips(mixed_shards, 0, 5, rank, world)) for rank in range(world)]
        assert [micro for _ in range(20 // world) for micro in [next(rank) for rank in ranks]] == alone
    positions = [slot for micro in alone for _, slot in micro]
    assert len(set(positions)) == len(positions)


def test_plain_webdataset_gives_the_same_batches_bit_for_bit(mixed_shards: Path, tmp_path: Path) -> None:
    for config in (FOUR, replace(FOUR, durations=(3, 5), shuffle_audio=True, readers=3)):
        both = [ClipWindows(mixed_shards, replace(config, reader=kind), seed=3) for kind in ("windows", "webdataset")]
        for _, (ours, plain) in zip(range(8), zip(*(stream(w, 0, 0, 1) for w in both), strict=True), strict=False):
            assert named(ours) == named(plain)
            for one, other in zip(ours, plain, strict=True):
                for a, b in zip(one.samples, other.samples, strict=True):
                    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)
    damaged = damage(mixed_shards, tmp_path / "damaged", "clip004")
    found = [read_clips(damaged, 0, 3, 0, 1, replace(FOUR, reader=kind)) for kind in ("windows", "webdataset")]
    assert found[0] == found[1] and "clip004" not in {name for micro in found[1] for name, _ in micro}


def test_a_resumed_stream_goes_on_where_it_was(mixed_shards: Path) -> None:
    assert read_clips(mixed_shards, 3, 2, 0, 1) == read_clips(mixed_shards, 0, 5, 0, 1)[12:]


def test_a_phase_that_begins_later_has_an_order_and_positions_of_its_own(mixed_shards: Path) -> None:
    store = Store(mixed_shards, FOUR)
    first, second = (ClipWindows(store, FOUR, seed=3, phase=phase) for phase in (0, 1))
    second.start = 6
    before, after = (named(next(stream(w, 6, 0, 1))) for w in (first, second))
    positions = [{slot for micro in batch for _, slot in micro} for batch in (before, after)]
    assert min(positions[1]) == 6 * 4 * 2  # no position of the steps before
    assert before != after
    assert (first.epoch_of(6), second.epoch_of(6)) == (1, 0)  # 13 micro-batches an epoch
    assert {name for step in range(6, 10) for name in clips_of_step(second, step)} == set(second.clip_ids)


def test_a_window_starts_with_its_clip_and_keeps_audio_and_video_in_sync(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(max_latents=4), seed=0)
    sample = windows.read(2)
    stored, _ = ShardReader(mixed_shards).sample(2)
    assert torch.equal(sample.latents, torch.from_numpy(stored["latents"][:, :4]).float())
    assert sample.audio.shape == (13, 24)
    assert torch.equal(sample.audio[:, :18], torch.from_numpy(stored["audio"][:13]).float())
    assert torch.equal(sample.audio[:, 18:], sample.audio[:, :6])  # the last state repeats the first
    assert windows.constants.audio_dim == 24


def test_windows_of_few_durations_share_buckets(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(durations=(3, 5)), seed=0)
    assert sorted(windows.order.members) == [Bucket(4, 4, 3), Bucket(4, 4, 5)]
    assert (windows.account.used, windows.account.cut_by_length) == (23, 7 * 4)
    shorter = windows.read_batch(windows.batch_slots(0)[0])
    assert shorter.bucket.frames == shorter.samples[0].latents.shape[1] in (3, 5)


def test_shuffled_audio_is_never_the_clip_s_own(shards: Path) -> None:
    windows = ClipWindows(shards, DataConfig(batch=4), seed=0)
    control = ClipWindows(shards, replace(windows.config, shuffle_audio=True), seed=0)
    for right, wrong in zip(
        windows.read_batch(windows.batch_slots(0)[0]).samples,
        control.read_batch(control.batch_slots(0)[0]).samples,
        strict=True,
    ):
        assert right.clip_id == wrong.clip_id
        assert torch.equal(right.latents, wrong.latents)
        assert not torch.equal(right.audio, wrong.audio)


def test_a_clip_alone_in_its_shape_gets_the_audio_of_a_longer_one(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(), seed=0)
    rows = [windows.order.members[Bucket(4, 4, frames)] for frames in (3, 5, 9)]
    windows.order.members[Bucket(4, 4, 3)] = rows[0][:1]
    assert windows.partner(rows[0][0]) in rows[1]
    heard, own = (windows.read(rows[0][0], swapped).audio for swapped in (True, False))
    assert heard.shape == own.shape and not torch.equal(heard, own)
    windows.order.members[Bucket(4, 4, 9)] = rows[2][:1]
    assert windows.partner(rows[2][0]) == rows[2][0]


def test_splits_are_kept_apart(shards: Path) -> None:
    train, test = (ClipWindows(shards, DataConfig(split=split), seed=0).clip_ids for split in ("train", "test"))
    assert (len(train), len(test)) == (12, 4)
    assert not set(train) & set(test)


def test_clips_without_a_window_are_counted_and_a_split_of_them_is_named(mixed_shards: Path) -> None:
    windows = ClipWindows(mixed_shards, DataConfig(), seed=0, shortest=5)
    assert (len(windows.rows), windows.account.used, windows.account.too_short) == (16, 16, 7)
    with pytest.raises(ValueError, match="split 'dev'"):
        ClipWindows(mixed_shards, DataConfig(split="dev"), seed=0)
    with pytest.raises(ValueError, match="0 are shorter .* 23 have none within 4 tokens"):
        ClipWindows(mixed_shards, DataConfig(max_tokens=4), seed=0)


def test_a_damaged_sample_is_named_and_replaced_by_the_next_of_its_shape(mixed_shards: Path, tmp_path: Path) -> None:
    whole = read_clips(mixed_shards, 0, 3, 0, 1)
    damaged = damage(mixed_shards, tmp_path / "damaged", "clip004")
    windows = ClipWindows(damaged, FOUR, seed=3, cost=tokens)
    found = [micro for micros in islice(stream(windows, 0, 0, 1), 3) for micro in named(micros)]
    assert found == [[("clip007" if n == "clip004" else n, slot) for n, slot in micro] for micro in whole]
    assert [name for name, _ in windows.store.bad] == ["clip004"]
    assert "differs from its checksum" in windows.store.bad[0][1]
    assert index_digest(damaged) == index_digest(mixed_shards)


def test_a_training_stops_at_too_many_damaged_samples(mixed_shards: Path, tmp_path: Path) -> None:
    damaged = damage(mixed_shards, tmp_path / "damaged", "clip000", "clip003", "clip006")
    with pytest.raises(BadSamplesError, match="3 samples of .* data.max_bad is 2"):
        read_clips(damaged, 0, 3, 0, 1, replace(FOUR, max_bad=2))
    every = [f"clip{number:03d}" for number in range(0, 21, 3)]
    gone = damage(mixed_shards, tmp_path / "gone", *every)
    with pytest.raises(BadSamplesError, match="frames=3.* is left to replace clip0"):
        read_clips(gone, 0, 3, 0, 1)


def test_a_clip_put_in_quarantine_is_not_used_from_the_very_next_step(mixed_shards: Path) -> None:
    plain = ClipWindows(mixed_shards, FOUR, seed=3, cost=tokens)
    victim = clips_of_step(plain, 1)[0]
    running = stream(plain, 0, 0, 1)
    next(running)
    time.sleep(0.2)  # step 1 is read ahead
    plain.quarantined.add(victim)
    at_once = named(next(running))
    assert victim not in {name for micro in at_once for name, _ in micro}
    resumed = ClipWindows(mixed_shards, FOUR, seed=3, cost=tokens)
    resumed.quarantined.add(victim)
    later = stream(resumed, 1, 0, 1)
    assert named(next(later)) == at_once
    assert named(next(later)) == named(next(running))


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random audio encoder of two layers and width 6."""
    folder = tmp_path_factory.mktemp("wav2vec2")
    sizes = {"hidden_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    stem = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **stem)).save_pretrained(folder)
    return folder


def sounding_shards(folder: Path, wav2vec2: Path, kind: AudioKind) -> Path:
    """Four clips of 5 latent frames with one noise, kept as features or as the waveform itself."""
    rng, encoder = np.random.default_rng(0), load_audio_encoder(wav2vec2)
    with ShardWriter(folder, samples_per_shard=8) as writer:
        for number in range(4):
            latents = rng.standard_normal((16, 5, 4, 4)).astype(np.float16)
            wave = to_samples(0.3 * rng.standard_normal(17 * 640).astype(np.float32), 17 * 640)
            features = drop_duplicate(encoder.encode(to_wave(torch.from_numpy(wave))), 6).numpy().astype(np.float16)
            tensors = {
                "latents": latents,
                "references": np.moveaxis(latents[:, :3], 1, 0).copy(),
                "text": np.zeros((3, 12), np.float16),
                "audio": wave if kind == "waveform" else features,
            }
            writer.add(f"clip{number}", tensors, {"video_id": "", "split": "train"})
    write_constants(folder, Constants(torch.ones(1, 12), 6, encoder.feature_dim, kind, hash_path(wav2vec2)))
    return folder


def test_a_stored_waveform_gives_the_same_windows_as_stored_features(wav2vec2: Path, tmp_path: Path) -> None:
    config = DataConfig(batch=4, max_latents=3, audio_encoder=wav2vec2)
    kinds: tuple[AudioKind, AudioKind] = ("features", "waveform")
    both = [ClipWindows(sounding_shards(tmp_path / kind, wav2vec2, kind), config, seed=0) for kind in kinds]
    for swapped in (False, True):
        for row in range(4):
            stored, encoded = (windows.read(row, swapped).audio for windows in both)
            assert encoded.shape == stored.shape == (9, 24)
            assert torch.allclose(encoded, stored, rtol=1e-3, atol=1e-3)
    threads = replace(config, batch=1, micro_batches=4, readers=3)
    together = next(stream(ClipWindows(tmp_path / "waveform", threads, seed=0), 0, 0, 1))
    for micro in together:
        row = both[1].clip_ids.index(micro.samples[0].clip_id)
        assert torch.equal(micro.samples[0].audio, both[1].read(row).audio)
    with pytest.raises(ValueError, match="hold waveforms"):
        ClipWindows(tmp_path / "waveform", DataConfig(), seed=0)
