from pathlib import Path

import pytest

from common.runs import write_json
from omniavatar.weights.checkpoints import AdapterConfig
from training.config import ModelConfig
from training.data.buckets import Bucket
from training.planning.sizes import PAPER_CLIPS, PAPER_SIZE, clips_to_train, network_to_train, sample_bytes


def test_published_sizes_of_the_shards() -> None:
    terabytes = {name: PAPER_CLIPS * size / 1e12 for name, size in sample_bytes(PAPER_SIZE).items()}
    assert terabytes["latents"] == pytest.approx(6.03, rel=0.02)
    assert terabytes["text"] == pytest.approx(0.70, rel=0.02)
    assert terabytes["audio"] == pytest.approx(2.37, rel=0.02)
    clips = clips_to_train(None, "train")
    assert clips.shard_bytes == pytest.approx(1e12 * sum(terabytes.values()))


def test_clips_come_from_the_index(shards: Path) -> None:
    clips = clips_to_train(shards, "train")
    assert clips.sizes == {Bucket(4, 4, 5): 12}
    assert (clips.text, clips.audio_dim) == (6, 24)
    stored = sum(file.stat().st_size for file in shards.glob("*.tar"))
    assert stored - 20_000 < clips.shard_bytes <= stored  # but for the ends of the tars
    with pytest.raises(ValueError, match="split 'none'"):
        clips_to_train(shards, "none")


def test_the_network_is_that_of_the_config_or_of_the_name(base_folder: Path) -> None:
    assert network_to_train(ModelConfig(base=base_folder), 24).width == 24
    named = network_to_train(ModelConfig(base=Path("weights/wan2.1-t2v-1.3b")), 10_752)
    assert (named.width, named.layers, named.inputs) == (1536, 30, 33)
    assert network_to_train(ModelConfig(base=Path("wan2.1-t2v-14b"), variant="base"), 0).inputs == 16
    with pytest.raises(ValueError, match="elsewhere holds no config.json and is none of wan2.1-t2v-14b"):
        network_to_train(ModelConfig(base=Path("elsewhere")), 24)


def test_an_adapter_that_is_there_has_its_own_rank(base_folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", AdapterConfig("lora", 7, 3.0, audio_entry="single").to_json(33))
    there = network_to_train(ModelConfig(base=base_folder, adapter=tmp_path), 24)
    assert (there.rank, there.entry) == (7, "single")
    absent = network_to_train(ModelConfig(base=base_folder, adapter=tmp_path / "absent", lora_rank=9), 24)
    assert (absent.rank, absent.entry) == (9, "multi")
