"""Objects fetched and published, and a run that another machine goes on with: on `file://`, and on an S3 server."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder
from common.storage import Listing, Mirror, StorageError, exists, fetch, is_url, join, list_objects, publish
from tests.common.executors.function_stage import FunctionStage
from tests.common.object_store import object_store

CONTENT = bytes(range(256)) * 5000


def test_a_file_goes_out_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    url = f"file://{tmp_path}/far/deep/a.mp4"
    assert is_url(url) and not is_url(str(tmp_path)) and not exists(url)
    publish(tmp_path / "a.mp4", url)
    assert exists(url) and list_objects(f"file://{tmp_path}/far") == [Listing("deep/a.mp4", len(CONTENT))]
    assert join("s3://b/run/?region=x&scheme=http", "a", "b") == "s3://b/run/a/b?region=x&scheme=http"
    local = fetch(url, tmp_path / "cache")
    assert local.suffix == ".mp4" and local.read_bytes() == CONTENT
    # Not fetched again; another object at the same address is.
    local.write_bytes(b"!" * len(CONTENT))
    assert fetch(url, tmp_path / "cache") == local and local.read_bytes()[0] == ord("!")
    (tmp_path / "a.mp4").write_bytes(b"new")
    publish(tmp_path / "a.mp4", url)
    assert fetch(url, tmp_path / "cache").read_bytes() == b"new"


def test_an_object_store_is_used_the_same_way(tmp_path: Path) -> None:
    large = CONTENT * 10  # more than a part of an upload
    (tmp_path / "a.mp4").write_bytes(large)
    run = RunFolder(tmp_path / "run")
    (run.clips / "b.mp4").write_bytes(CONTENT)
    with object_store() as store:
        url = store.url("bucket/far/a.mp4")
        assert not exists(url)
        publish(tmp_path / "a.mp4", url)
        assert store.objects == {"bucket/far/a.mp4": large} and exists(url)
        assert list_objects(store.url("bucket/far")) == [Listing("a.mp4", len(large))]
        local = fetch(url, tmp_path / "cache")
        assert local.read_bytes() == large
        fetched = len(store.gets)
        assert fetch(url, tmp_path / "cache") == local and len(store.gets) == fetched
        local.rename(local.with_suffix(".mp4.part"))
        with open(local.with_suffix(".mp4.part"), "ab") as part:
            part.truncate(len(large) - 10)
        assert fetch(url, tmp_path / "cache").read_bytes() == large
        assert store.gets[fetched:] == [("bucket/far/a.mp4", f"bytes={len(large) - 10}-{len(large) - 1}")]
        mirror = Mirror(run.root, store.url("bucket/run"))
        assert mirror.push() == len(CONTENT) and mirror.push() == 0
        assert Mirror(tmp_path / "other", mirror.url).restore() == 1
        assert (tmp_path / "other" / "clips" / "b.mp4").read_bytes() == CONTENT
        (run.clips / "b.mp4").unlink()
        assert mirror.push() == 0 and mirror.sweep() == 1
        with pytest.raises(StorageError, match=r"no object at s3://bucket/gone.mp4\?scheme"):  # and no keys
            fetch(store.url("bucket/gone.mp4"), tmp_path)


def test_a_torn_download_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(CONTENT)
    url = f"file://{tmp_path}/a.bin"
    target = fetch(url, tmp_path / "cache")
    target.unlink()
    # The first half is marked, so that it shows whether it was kept.
    part = target.with_suffix(".bin.part")
    part.write_bytes(b"!" * 1000)
    assert fetch(url, tmp_path / "cache").read_bytes() == b"!" * 1000 + CONTENT[1000:]
    assert not part.exists()
    target.unlink()
    part.write_bytes(CONTENT + b"too long")
    assert fetch(url, tmp_path / "cache").read_bytes() == CONTENT


def test_errors_name_the_address(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no object at file://.*gone.mp4"):
        fetch(f"file://{tmp_path}/gone.mp4", tmp_path)
    with pytest.raises(StorageError, match="'clips/a.mp4' is no address"):
        exists("clips/a.mp4")
    with pytest.raises(StorageError, match="odd://x cannot be used"):
        exists("odd://x")
    assert list_objects(f"file://{tmp_path}/nothing") == []


def square(row: dict) -> Outcome:
    with open(row["calls"], "a") as calls:
        calls.write(f"{row['unit']}\n")
    return Outcome(row["unit"], "kept", outputs={"square": row["n"] ** 2})


def make() -> object:
    return square


def work(run: RunFolder, names: tuple[str, ...], calls: Path, count: int = 20) -> None:
    rows = [{"unit": f"u{n}", "n": n, "calls": str(calls)} for n in range(count)]
    for name in names:
        stage = FunctionStage(name, "1", {}, {}, make, reads=("unit", "n"))  # type: ignore[arg-type]
        run_stage(stage, rows, Ledger(run.ledger), ExecutorConfig(workers=1))


def test_another_machine_goes_on_where_one_was_lost(tmp_path: Path) -> None:
    first, calls = RunFolder(tmp_path / "first"), tmp_path / "calls"
    mirror = Mirror(first.root, f"file://{tmp_path}/bucket/run")
    assert mirror.restore() == 0
    work(first, ("one",), calls)
    (first.clips / "a.mp4").write_bytes(CONTENT)
    (first.clips / "b.mp4").write_bytes(CONTENT)
    (first.cache / "big").write_bytes(CONTENT)
    (first.cache / "videos").mkdir()
    (first.cache / "videos" / "v.mp4").write_bytes(b"days of downloading")
    assert len(CONTENT) <= mirror.push() < 2 * len(CONTENT)  # equal files once, nothing of the cache
    assert mirror.push() == 0
    work(first, ("two",), calls)  # lost with the machine

    second = RunFolder(tmp_path / "second")
    arrived = Mirror(second.root, mirror.url)
    assert arrived.restore() >= 3 and arrived.restore() == 0
    assert (second.clips / "b.mp4").read_bytes() == CONTENT and not (second.root / "cache" / "big").exists()
    assert (second.root / "cache" / "videos" / "v.mp4").exists()
    calls.unlink()
    work(second, ("one", "two"), calls)
    assert len(calls.read_text().split()) == 20  # of the stage in flight alone
    (second.clips / "a.mp4").write_bytes(b"changed")
    (second.clips / "b.mp4").unlink()
    assert arrived.push() > 0 and arrived.sweep() > 0 and arrived.sweep() == 0
    third = RunFolder(tmp_path / "third")
    Mirror(third.root, mirror.url).restore()
    assert [file.read_bytes() for file in third.clips.iterdir()] == [b"changed"]


def test_a_push_that_is_killed_leaves_the_mirror_as_it_was(tmp_path: Path) -> None:
    run, bucket = RunFolder(tmp_path / "run"), tmp_path / "bucket"
    mirror = Mirror(run.root, f"file://{bucket}")
    (run.clips / "old.mp4").write_bytes(b"old")
    mirror.push()
    for number in range(1500):  # more than are copied while the two take turns on a core
        (run.clips / f"{number}.mp4").write_bytes(b"%d" % number * 2_000)
    (run.clips / "old.mp4").write_bytes(b"newer")
    script = f"""
        from pathlib import Path
        from common.storage import Mirror
        Mirror(Path({str(run.root)!r}), "file://{bucket}").push()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], env=os.environ | {"PYTHONPATH": PATH})
    while len(list((bucket / "objects").iterdir())) < 20:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {item.path for item in list_objects(f"{mirror.url}/objects")}
    assert len(before) < 1500
    other = RunFolder(tmp_path / "other")
    assert Mirror(other.root, mirror.url).restore() == 1
    assert (other.clips / "old.mp4").read_bytes() == b"old"
    mirror.push()
    whole = RunFolder(tmp_path / "whole")
    assert Mirror(whole.root, mirror.url).restore() == 1501
    assert (whole.clips / "399.mp4").read_bytes() == b"399" * 2_000


PATH = str(Path(__file__).parents[2] / "packages")


def test_what_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    (run.clips / "a.mp4").write_bytes(b"abc")
    mirror = Mirror(run.root, f"file://{tmp_path}/bucket")
    mirror.push()
    item = next((tmp_path / "bucket" / "objects").iterdir())
    item.write_bytes(b"xyz")
    with pytest.raises(StorageError, match="is not what its name says"):
        Mirror(tmp_path / "other", mirror.url).restore()
    assert not (tmp_path / "other" / "clips" / "a.mp4").exists()
    item.write_bytes(b"a")
    assert mirror.push() == 3 and item.read_bytes() == b"abc"  # a torn object is sent again
    manifest = tmp_path / "bucket" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("clips/a.mp4", "../../a.mp4"))
    with pytest.raises(StorageError, match="outside of the run"):
        Mirror(tmp_path / "other", mirror.url).restore()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 1}', '{"files": {"a": {}}}', "[" * 99_999])
def test_a_damaged_manifest_is_named_and_written_again(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path / "run")
    (run.clips / "a.mp4").write_bytes(b"abc")
    mirror = Mirror(run.root, f"file://{tmp_path}/bucket")
    mirror.push()
    manifest = tmp_path / "bucket" / "manifest.json"
    manifest.write_text(text)
    with pytest.raises(StorageError, match="is damaged .* delete manifest.json there"):
        Mirror(tmp_path / "other", mirror.url).restore()
    manifest.unlink()
    mirror.push()
    assert Mirror(tmp_path / "other", mirror.url).restore() > 0
