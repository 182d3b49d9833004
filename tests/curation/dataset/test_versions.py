"""Lists of a small run: named by content, byte for byte the same again, compared, and with tombstones."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import read_clips, write_clips
from common.executors.config import ExecutorConfig
from common.runs import RunFolder
from curation.dataset.content import hash_content
from curation.dataset.difference import compare
from curation.dataset.freeze import freeze
from curation.dataset.versions import SCHEMA, VersionError, read_version, withdraw
from tests.curation.frozen import RULES, make_run, write_videos

HERE = ExecutorConfig(workers=1)
URLS = {"one": "https://host/one.mp4", "two": "https://host/two.mp4"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "run", write_videos(tmp_path / "videos"), URLS)


def frozen(run: RunFolder, folder: Path, rules: object = RULES) -> Path:
    return folder / f"{freeze(run, rules, folder, HERE)['name']}.parquet"


def change(run: RunFolder, **fields: object) -> None:
    """Write other values into the row of the second video."""
    rows = read_clips(run.clips_parquet)
    write_clips(run.clips_parquet, [row | fields if row["video_id"] == "two" else row for row in rows])


def test_equal_content_gives_equal_bytes_and_names(run: RunFolder, tmp_path: Path) -> None:
    first, again = frozen(run, tmp_path / "a"), frozen(run, tmp_path / "b")
    other = make_run(tmp_path / "elsewhere", tmp_path / "videos", URLS)
    third = frozen(other, tmp_path / "c")
    assert first.name == again.name == third.name and len(first.stem) == 16
    for suffix in (".parquet", ".json"):
        assert len({path.with_suffix(suffix).read_bytes() for path in (first, again, third)}) == 1
    assert frozen(run, tmp_path / "a", RULES | {"select": {"min_sync_c": 5.0}}).name != first.name
    change(run, sync_offset_applied=1)
    assert frozen(run, tmp_path / "a").name != first.name


def test_the_list_holds_what_is_needed_and_nothing_personal(run: RunFolder, tmp_path: Path) -> None:
    header, table = read_version(frozen(run, tmp_path))
    assert (header["clips"], header["videos"], header["taken_down"]) == (3, 2, 0)
    assert header["hours"] == pytest.approx(2.4 / 3600) and header["rules"] == RULES
    assert header["sha256"].startswith(header["name"]) and header["sources"] == {"urls": 3}
    rows = {row["video_id"]: row for row in table.to_pylist()}
    two = rows["two"]
    assert (two["crop"], two["crop_side"], two["source_height"], two["t_start"]) == ([16, 8, 48, 48], 32, 64, 0.2)
    assert (two["url"], rows["one"]["crop_side"]) == ("https://host/two.mp4", None)
    assert two["content_sha256"] == hash_content(run.clips / f"{two['clip_id']}.mp4")
    text = json.dumps([header, table.to_pylist()])
    assert "A secret" not in text and "caption" not in SCHEMA.names and str(tmp_path) not in text


def test_a_file_that_is_not_the_tables_cannot_be_frozen(run: RunFolder, tmp_path: Path) -> None:
    next(run.clips.glob("*.mp4")).write_bytes(b"rubbish")
    with pytest.raises(VersionError, match="1 clips cannot be frozen.*run the curation job again"):
        freeze(run, RULES, tmp_path, HERE)
    assert freeze(run, RULES, tmp_path, HERE, hash_contents=False)["clips"] == 3
    change(run, decision="rejected")
    rows = read_clips(run.clips_parquet)
    write_clips(run.clips_parquet, [row | {"decision": "rejected"} for row in rows])
    with pytest.raises(VersionError, match="no kept clip"):
        freeze(run, RULES, tmp_path, HERE)


def test_the_difference_of_two_lists(run: RunFolder, tmp_path: Path) -> None:
    before = frozen(run, tmp_path / "lists")
    assert compare(before, before).lines()[0].split() == ["added", "0", "clips", "0.00", "h"]
    rows = read_clips(run.clips_parquet)
    one, other, two = sorted(
        (row for row in rows if row["decision"] == "kept"), key=lambda row: (row["video_id"], row["t_start"])
    )
    moved = two | {"split": "test"}
    back = next(row for row in rows if row["decision"] == "rejected") | {"decision": "kept"}
    (run.clips / "refused.mp4").write_bytes((run.clips / f"{one['clip_id']}.mp4").read_bytes())
    write_clips(run.clips_parquet, [one, other | {"decision": "rejected"}, moved, back])
    after = frozen(run, tmp_path / "lists", RULES | {"select": {"min_sync_c": 5.0, "max_faces": 1}})
    found = compare(before, after)
    assert (found.added, found.removed, found.taken_down, found.changed) == (1, 1, 0, 1)
    assert found.fields == {"split": 1} and found.changed_hours == pytest.approx(0.8 / 3600)
    assert found.rules == {"select.max_faces": (None, 1), "select.min_sync_c": (4.0, 5.0)}
    assert found.lines()[-1] == "rule select.min_sync_c: 4.0 -> 5.0"


def test_a_changed_list_is_noticed(run: RunFolder, tmp_path: Path) -> None:
    path = frozen(run, tmp_path)
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    rows[0]["t_end"] += 0.04
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    with pytest.raises(VersionError, match="holds other clips than its header lists"):
        read_version(path)
    with pytest.raises(VersionError, match="holds other clips"):
        withdraw(path, "one", "hash")


def test_a_withdrawn_video_leaves_tombstones(run: RunFolder, tmp_path: Path) -> None:
    before, path = frozen(run, tmp_path / "old"), frozen(run, tmp_path / "new")
    old_header = path.with_suffix(".json").read_bytes()
    assert withdraw(path, "one", "f00d") == 2
    header, table = read_version(path)
    buried = [row for row in table.to_pylist() if row["taken_down"]]
    assert [{name for name, value in row.items() if value is not None} for row in buried] == [
        {"clip_id", "taken_down"}
    ] * 2
    assert (header["name"], header["clips"], header["taken_down"]) == (before.stem, 1, 2)
    assert header["sha256"] == json.loads(old_header)["sha256"] != header["sha256_now"]
    assert b'"one"' not in path.with_suffix(".json").read_bytes()
    found = compare(before, path)
    assert (found.added, found.removed, found.taken_down, found.changed) == (0, 2, 2, 0)
    path.with_suffix(".json").write_bytes(old_header)  # killed between the two files
    assert withdraw(path, "one", "f00d") == 2 and read_version(path)[0] == header
    assert withdraw(path, "three", "beef") == 0
