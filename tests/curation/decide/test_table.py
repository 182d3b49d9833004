"""The clip table of parts is the one of its rows decided one by one: same bytes whatever the parts and their order."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from common.clips import ClipError, read_clips, write_clips
from curation.config import CurationConfig, SelectConfig
from curation.decide.select import select
from curation.decide.split import HeldOut, write_split
from curation.decide.table import (
    JUDGED_SCHEMA,
    NOT_JUDGED,
    cut_ids,
    stream_cut,
    write_clip_table,
    write_part,
    write_test_fingerprints,
)
from tests.curation.decide.drawn_rows import draw_rows, splits_of

VERSIONS = {"cut": "f1", "sync": "f2"}
ROWS = 400


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Clips at random; of those that no stage has stopped every tenth shows what the one before it shows."""
    rng = np.random.default_rng(0)
    drawn = [row | dict.fromkeys(NOT_JUDGED) for row in draw_rows(ROWS, 3)]
    alike = {"hashes": [], "loudness": []}
    for number, row in enumerate(drawn):
        row |= {"video_id": f"v{number % 50:02d}", "t_start": float(number), "duration": 5.0}
        if number % 5 == 0:  # stopped before it was cut, or by a later stage
            row |= {"decision": "failed", "reasons": ["failed sync"]}
            continue
        if number % 10 != 9:
            hashes = [f"{value:016x}" for value in rng.integers(0, 2**63, 3).tolist()]
            alike = {"hashes": hashes, "loudness": rng.integers(-50, -5, 50).tolist()}
        row |= {"decision": None, "reasons": None, "cut_sha256": f"sha{number}", "sha256": f"sha{number}"} | alike
    return drawn


@pytest.fixture(scope="module")
def expected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, worked out here: the first of two copies by video and start is their group."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(
        (row for row in rows if row.get("cut_sha256")), key=lambda row: (row["video_id"], row["t_start"])
    ):
        groups.setdefault(row["hashes"][0], []).append(row)
    group_of = {row["clip_id"]: same[0]["clip_id"] for same in groups.values() if len(same) > 1 for row in same}
    assert len(group_of) == 2 * ROWS // 10
    compared = [row | {"dup_group": group_of.get(row["clip_id"])} for row in rows]
    of_the_run = {"run_id": "r", "stage_versions": VERSIONS}
    return [
        {name: value for name, value in row.items() if name not in ("cut_sha256", "hashes", "loudness")}
        | fields
        | of_the_run
        for row, fields in zip(compared, select(SelectConfig(), compared), strict=True)
    ]


def write_table(folder: Path, rows: list[dict[str, Any]], count: int, config: CurationConfig) -> Path:
    """The table of `count` parts; returns its path."""
    parts = [folder / f"{count}-{number}.parquet" for number in range(count)]
    for number, part in enumerate(parts):
        write_part(part, rows[number::count])
    write_clip_table(config, parts, folder / f"{count}.clips.parquet", run_id="r", stage_versions=VERSIONS)
    return folder / f"{count}.clips.parquet"


def test_one_part_or_many_in_any_order_give_the_bytes_of_the_rows(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_clips(tmp_path / "expected.parquet", expected)
    tables = [write_table(tmp_path, rows, 1, CurationConfig()), write_table(tmp_path, rows[::-1], 7, CurationConfig())]
    assert {table.read_bytes() for table in tables} == {(tmp_path / "expected.parquet").read_bytes()}


def test_a_list_of_test_clips_is_the_split(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    chosen = [row for row in expected if row["dup_group"]][:3]
    clips = tuple(sorted((row["clip_id"], row["video_id"], row["t_start"], row["t_start"] + 5) for row in chosen))
    held = HeldOut("video", 0, clips)
    write_split(tmp_path / "test.tsv", held)
    config = CurationConfig(test_list=str(tmp_path / "test.tsv"))
    found = {row["clip_id"]: row["split"] for row in read_clips(write_table(tmp_path, rows, 2, config))}
    assert found == splits_of(held, [row | {"stage_versions": None} for row in expected])
    assert set(found.values()) == {"test", "held_out", "train"}


def test_clips_to_keep_out_are_found_and_the_test_clips_are_handed_on(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_part(tmp_path / "part.parquet", rows)
    lax = SelectConfig(**{name: -1e9 for name in ("min_seconds", "min_sync_c", "min_iqa", "min_side", "min_fps")})
    config = replace(CurationConfig(), select=replace(lax, test_share=1.0))
    cut = [row for row in rows if row.get("cut_sha256")]
    reference = {"unit": "held", "cut_sha256": cut[0]["cut_sha256"], "hashes": ["0" * 16] * 3, "loudness": []}
    target = tmp_path / "clips.parquet"
    write_clip_table(config, [tmp_path / "part.parquet"], target, run_id="r", stage_versions={}, references=[reference])
    table = read_clips(target)
    assert {row["clip_id"]: row["test_overlap"] for row in table if row["test_overlap"]} == {cut[0]["clip_id"]: "held"}
    write_test_fingerprints([tmp_path / "part.parquet"], target, tmp_path / "test.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    kept = sorted(row["clip_id"] for row in table if row["decision"] == "kept")
    assert [line["unit"] for line in lines] == kept and kept
    by_id = {row["clip_id"]: row for row in rows}
    assert all(line["loudness"] == by_id[line["unit"]]["loudness"] for line in lines)


def test_what_was_cut_comes_by_video_and_start(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    parts = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_part(parts[0], rows[::2])
    write_part(parts[1], rows[1::2])
    found = list(stream_cut(parts, ("video_id", "t_start", "sha256")))
    cut = sorted((row for row in rows if row.get("cut_sha256")), key=lambda row: (row["video_id"], row["t_start"]))
    assert [row["unit"] for row in found] == [row["clip_id"] for row in cut]
    assert sorted(cut_ids(parts).to_pylist()) == sorted(row["clip_id"] for row in cut)


def test_nothing_at_all_is_an_empty_table_and_a_clip_in_two_parts_an_error(tmp_path: Path) -> None:
    write_clip_table(CurationConfig(), [], tmp_path / "clips.parquet", run_id="r", stage_versions={})
    assert read_clips(tmp_path / "clips.parquet") == [] and list(stream_cut([], ("path",))) == []
    row = draw_rows(1, 0)[0]
    for name in ("a", "b"):
        write_part(tmp_path / f"{name}.parquet", [row | {"decision": None}])
    with pytest.raises(ClipError, match="is there twice"):
        write_clip_table(
            CurationConfig(), sorted(tmp_path.glob("?.parquet")), tmp_path / "c.parquet", run_id="r", stage_versions={}
        )
    assert pq.read_schema(tmp_path / "a.parquet").names == JUDGED_SCHEMA.names
