"""Clips leave finished shards as if they had never been encoded, and the job has nothing to do afterwards."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.clips import read_clips, write_clips
from common.runs import RunFolder, read_json
from common.shards.index import read_index
from common.shards.sample import ShardError
from common.shards.store import ShardReader
from latents.job import encode_clips
from latents.takedown import forget_latents, shards_version
from tests.latents.test_job import CONFIG, HERE, Drawn, row, shard_bytes

ONE_SHARD = replace(CONFIG, samples_per_shard=8)


class DrawnByName(Drawn):
    """The clip table keeps no seed: it is the number at the end of the clip_id."""

    def __call__(self, clip: dict[str, Any]) -> Any:
        return super().__call__(clip | {"seed": int(clip["clip_id"][4:])})


def encode(run: RunFolder, folders: dict[str, Path], numbers: tuple[int, ...]) -> list[int]:
    """Clips into the table and the shards; returns which were encoded."""
    rows = [{name: value for name, value in row(n).items() if name != "seed"} for n in numbers]
    write_clips(run.clips_parquet, [each | {"decision": "kept"} for each in rows])
    drawn = DrawnByName()
    encode_clips(ONE_SHARD, read_clips(run.clips_parquet), folders, run, HERE, drawn)
    return drawn.read


@pytest.fixture
def run(encoder_folders: dict[str, Path], tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    encode(run, encoder_folders, (0, 1, 2))
    return run


def test_the_shards_are_as_if_it_had_never_been_there(
    run: RunFolder, encoder_folders: dict[str, Path], tmp_path: Path
) -> None:
    assert forget_latents(run, ["clip1"], "f00d") == {"samples": 1, "files": 1}
    encode(RunFolder(tmp_path / "other"), encoder_folders, (0, 2))
    left = shard_bytes(run.root)
    left.pop("version.json")
    assert left == shard_bytes(tmp_path / "other")
    assert read_json(run.shards / "version.json") == {"version": 2, "taken_down": [{"video": "f00d", "samples": 1}]}
    assert not list(run.cache.rglob("clip1*"))
    before = shard_bytes(run.root)
    assert encode(run, encoder_folders, (0, 2)) == [] and shard_bytes(run.root) == before
    assert forget_latents(run, ["clip1"], "f00d") == {"samples": 1, "files": 0} and shard_bytes(run.root) == before
    assert shards_version(run.shards) == 2


def test_one_interrupted_halfway_is_completed(run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "other")
    forget_latents(RunFolder(tmp_path / "other"), ["clip0"], "f00d")
    (run.shards / ".next").mkdir()
    for file in (tmp_path / "other" / "shards").iterdir():  # killed when all was decided and nothing in its place
        shutil.copy(file, run.shards / ".next" / file.name)
    with pytest.raises(ShardError, match="run the same takedown again"):
        read_index(run.shards)
    assert forget_latents(run, ["clip0"], "f00d")["samples"] == 1
    assert shard_bytes(run.root) == shard_bytes(tmp_path / "other")


def test_shards_that_were_out_of_date_are_packed_anew(run: RunFolder, encoder_folders: dict[str, Path]) -> None:
    changed = [
        each | ({"caption": "a woman speaks"} if each["clip_id"] == "clip2" else {})
        for each in read_clips(run.clips_parquet)
    ]
    write_clips(run.clips_parquet, changed)
    forget_latents(run, ["clip1"], "f00d")
    left = [each for each in changed if each["clip_id"] != "clip1"]
    drawn = DrawnByName()
    encode_clips(ONE_SHARD, left, encoder_folders, run, HERE, drawn)
    assert drawn.read == [2] and ShardReader(run.shards).sample(1)[1]["caption"] == "a woman speaks"


def test_files_of_clips_whose_ids_begin_alike_stay(tmp_path: Path) -> None:
    run, names = RunFolder(tmp_path), ("clip1", "clip10", "clip1.v2", "aclip1", "[c]lip1", "clip*")
    for name in names:
        (run.cache / "latents" / "f").mkdir(parents=True, exist_ok=True)
        (run.cache / "latents" / "f" / f"{name}.safetensors").touch()
    for gone in ("clip1", "clip*", "[c]lip1"):
        assert forget_latents(run, [gone, "nobody"], "f00d")["files"] == 1
    left = sorted(file.stem for file in (run.cache / "latents" / "f").iterdir())
    assert left == ["aclip1", "clip1.v2", "clip10"]


def test_a_run_without_shards_has_nothing_to_forget(tmp_path: Path) -> None:
    assert forget_latents(RunFolder(tmp_path), ["clip1"], "f00d") == {"samples": 0, "files": 0}
    assert not (tmp_path / "shards" / "version.json").exists()
