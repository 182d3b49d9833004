"""What counts as a change of the inputs of a step, and what as a product that is gone."""

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import write_clips
from common.errors import DamagedFileError
from common.runs import RunFolder, write_json
from common.shards.store import ShardWriter
from pipelines import inputs
from pipelines.dag import Context, InputsElsewhereError
from pipelines.recipe import read_recipe


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run folder with a little of everything, and its sources."""
    folder, run = tmp_path / "sources", RunFolder(tmp_path / "run")
    (folder / "deep").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "deep/c.mkv"):
        (folder / name).write_text(name)
    clip = {"caption": "x", "decision": "kept", "reasons": [], "split": "test", "video_id": "v", "sha256": "0"}
    write_clips(run.clips_parquet, [clip | {"clip_id": "c1"}, clip | {"clip_id": "c2", "decision": "rejected"}])
    for name in ("c1", "c2"):
        (run.clips / f"{name}.mp4").touch()
    with ShardWriter(run.shards, 1) as writer:
        tensors = {"latents": np.zeros((16, 1, 2, 2), np.float16), "text": np.zeros((1, 4), np.float16)}
        for name in ("c1", "c2"):
            writer.add(name, tensors, {"video_id": "v", "split": "train"})
    write_json(run.shards / "contents.json", {"digest": "1"})
    (run.videos / "v.mp4").write_text("v")
    row = {"method": "m", "clip_id": "c1", "video": "videos/v.mp4", "reference": "", "audio": "videos/v.mp4", "seed": 0}
    pq.write_table(pa.Table.from_pylist([row]), run.videos / "manifest.parquet")
    (run.checkpoints / "adapter").mkdir()
    (run.checkpoints / "adapter" / "w").write_text("1")
    (tmp_path / "test.tsv").write_text("c1")
    set_to = (
        f"sources.path={folder}",
        f"curation.test_list={tmp_path}/test.tsv",
        f"generate.load.extra_lora={tmp_path}/l",
    )
    return Context(read_recipe("folder", set_to), run, {})


CHANGES = {
    "sources": ["echo n > sources/n.mp4", "rm sources/a.mp4", "echo other > sources/a.mp4",
                "mv sources/a.mp4 sources/z.mp4",
                "echo '{\"caption\": \"y\"}' > sources/a.json", "echo c2 > test.tsv"],
    "shards": ["echo '{}' > run/shards/contents.json", "echo '{}' > run/shards/version.json"],
    "requests": ["echo 2 > run/checkpoints/adapter/w", "echo 2 > l"],
    "videos": ["echo w > run/videos/v.mp4", "rm run/videos/v.mp4",
               "echo '{}' > run/videos/v.json", "echo 1 > run/videos/demo.mp4"],
}  # fmt: skip


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in CHANGES for command in CHANGES[name]])
def test_a_change_of_the_inputs_is_seen(name: str, command: str, context: Context) -> None:
    home = context.run.root.parent
    before = getattr(inputs, name)(context)
    assert getattr(inputs, name)(context) == before
    assert os.system(f"cd '{home}' && {command}") == 0
    assert getattr(inputs, name)(context) != before


@pytest.mark.parametrize("name", [*CHANGES, "kept_clips"])
def test_a_copy_with_other_times_is_the_same(name: str, context: Context) -> None:
    home = context.run.root.parent
    before = getattr(inputs, name)(context)
    shutil.copytree(home, home / "copy", copy_function=shutil.copyfile)
    for kept, copied in [("sources", "sources"), ("run", "run")]:
        shutil.rmtree(home / kept)
        shutil.move(home / "copy" / copied, home / kept)
    assert getattr(inputs, name)(context) == before


def test_the_clips_that_shards_hold_are_the_kept_ones(context: Context) -> None:
    before = inputs.kept_clips(context)
    clip = {"caption": "x", "reasons": [], "split": "test", "video_id": "v", "sha256": "0"}
    one, two = clip | {"clip_id": "c1", "decision": "kept"}, clip | {"clip_id": "c2", "decision": "pending"}
    write_clips(context.run.clips_parquet, [one | {"sync_c": 3.0}, two])
    assert inputs.kept_clips(context) == before
    write_clips(context.run.clips_parquet, [one, two | {"decision": "kept"}])
    assert inputs.kept_clips(context) != before
    write_clips(context.run.clips_parquet, [one | {"caption": "y"}, two])
    assert inputs.kept_clips(context) != before


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("cut_clips_are_there", "rm run/clips/c2.mp4"),
        ("shards_are_whole", "rm run/shards/shard-000000.tar"),
        ("shards_are_whole", "truncate -s 100 run/shards/shard-000001.tar"),
        ("videos_are_there", "rm run/videos/v.mp4"),
    ],
)
def test_a_product_that_is_gone_or_short_is_seen(name: str, command: str, context: Context) -> None:
    assert getattr(inputs, name)(context)
    assert os.system(f"cd '{context.run.root.parent}' && {command}") == 0
    assert not getattr(inputs, name)(context)


def test_sources_that_are_not_on_this_machine(context: Context) -> None:
    shutil.rmtree(context.run.root.parent / "sources")
    with pytest.raises(InputsElsewhereError, match="do not exist here"):
        inputs.sources(context)


def test_large_files_are_known_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "HASHED_BYTES", 3)
    file = tmp_path / "a"
    file.write_text("aaaa")
    os.utime(file, ns=(1, 1))
    before = inputs.file_stamps([file, tmp_path / "none"])
    assert before == [[4, 1], None]
    os.utime(file, ns=(2, 2))
    assert inputs.file_stamps([file, tmp_path / "none"]) != before


@pytest.mark.parametrize("content", [b"", b"PAR1 garbage", b"PAR1"])
@pytest.mark.parametrize(
    ("look", "file"),
    [
        (inputs.cut_clips_are_there, "clips.parquet"),
        (inputs.cut_clips_are_there, "tracks.parquet"),
        (inputs.cut_clips_are_there, "sources.parquet"),
        (inputs.shards_are_whole, "shards/index.parquet"),
        (inputs.shards_are_whole, "shards/contents.json"),
        (inputs.shards_are_whole, "shards/constants.safetensors"),
        (inputs.training_is_whole, "checkpoints/state/latest"),
        (inputs.videos_are_there, "videos/manifest.parquet"),
        (inputs.metrics_are_there, "report/metrics.parquet"),
    ],
)
def test_a_done_step_does_not_pass_over_a_damaged_table(look, file: str, content: bytes, context: Context) -> None:
    (context.run.root / file).parent.mkdir(exist_ok=True, parents=True)
    (context.run.root / file).write_bytes(content)
    with pytest.raises(DamagedFileError, match=Path(file).name):
        look(context)


def test_a_training_is_done_only_with_a_whole_adapter(context: Context, caplog: pytest.LogCaptureFixture) -> None:
    adapter = context.run.checkpoints / "adapter"
    assert not inputs.training_is_whole(context) and "it has no weights" in caplog.text
    write_json(adapter / "config.json", {})
    with zipfile.ZipFile(adapter / "pytorch_model.pt", "w") as archive:
        archive.writestr("data", "weights")
    assert inputs.training_is_whole(context)
    (adapter / "pytorch_model.pt").write_bytes((adapter / "pytorch_model.pt").read_bytes()[:40])
    assert not inputs.training_is_whole(context) and "pytorch_model.pt is cut short" in caplog.text
