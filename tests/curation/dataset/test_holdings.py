"""A video is found to the letter: whatever its id looks like, nothing of another one goes with it."""

import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.clips import read_clips
from common.errors import DamagedFileError, InputError
from common.ledger.store import Ledger, Outcome, ledger_rows
from common.runs import RunFolder
from curation.config import SelectConfig
from curation.dataset.holdings import clip_files, find_holdings, source_files
from curation.dataset.takedown import begin, forget_clips, plan, still_named, tombstone
from tests.curation.withdrawn import FINGERPRINT, clip_of, draw_run, write

NFC, NFD = (unicodedata.normalize(form, "m\u00fcller.mp4") for form in ("NFC", "NFD"))
# Each with an id that begins or ends with it, or is a pattern for it.
LOCAL = (
    "1.mp4",
    "11.mp4",
    "1.mp4.mp4",
    "a/1.mp4",
    "[1].mp4",
    "?.mp4",
    "it's.mp4",
    '"q".mp4',
    "%.mp4",
    "_.mp4",
    "a b.mp4",
)
LOCAL += ("b.mp4", "-1.mp4", NFC, NFD, "a&amp;b.mp4", "\u65e5\u672c.mp4", "..mp4")
REMOTE = ("0", "1", "10", "talk", "talk.v2", "talk.json", "talk.mp4", "v2", "-talk", "talk.f1", "mp4", "Talk")


def files_of(run: RunFolder) -> dict[str, bytes]:
    """All files but tables and the ledger."""
    files = [file for file in run.root.rglob("*") if file.is_file() and file.suffix != ".parquet"]
    inside = {file.relative_to(run.root).as_posix(): file.read_bytes() for file in files}
    return {name: held for name, held in inside.items() if not name.startswith(("ledger/", "takedowns/"))}


def rows_of(run: RunFolder) -> set[tuple[str, str]]:
    """(table or stage, id) of everything that has a row."""
    found = {("clips", row["clip_id"]) for row in read_clips(run.clips_parquet)}
    found |= {(row["stage"], row["unit"]) for row in ledger_rows(run.ledger).to_pylist()}
    for name, column in (("sources.parquet", "video_id"), ("videos/manifest.parquet", "clip_id")):
        found |= {(name, value) for value in pq.read_table(run.root / name)[column].to_pylist()}
    return found | {(file.name, "") for file in (run.root / "per_frame").iterdir()}


@pytest.mark.parametrize(
    "ids,going",
    [
        (LOCAL[:5], ("1.mp4",)),
        (REMOTE[3:7], ("talk",)),
        pytest.param(LOCAL, LOCAL[:-1], marks=pytest.mark.soak),
        pytest.param(REMOTE, REMOTE[:-1], marks=pytest.mark.soak),
    ],
)
def test_nothing_of_another_video_goes_with_it(tmp_path: Path, ids: tuple[str, ...], going: tuple[str, ...]) -> None:
    run = draw_run(tmp_path, ids, "talk" in ids)
    for video in going:
        files, rows, clip = files_of(run), rows_of(run), clip_of(video)
        own = {name for name, held in files.items() if held.endswith(f" of {video}".encode())}
        entry = begin(run, video)
        counts = forget_clips(SelectConfig(), run, video, entry)
        sidecar = set(entry["files"]) - own - {file for file in entry["files"] if file.startswith("per_frame/")}
        assert all(file.endswith(".json") for file in sidecar) and len(own) == 4
        gone = set(files) - set(files_of(run))
        assert gone == own | sidecar and counts["files"] == len(gone)
        assert {name: held for name, held in files.items() if name not in gone} == files_of(run)
        left = rows - rows_of(run)
        assert {name for name, unit in left if unit in (video, clip, f"adapter/{clip}/0")} == {
            "clips", "sources.parquet", "videos/manifest.parquet", "probe", "scan", "cut", "eval",
        }  # fmt: skip
        assert len(left) == 8 and rows_of(run) - rows <= {("takedown", tombstone(video))}
        assert counts["ledger_rows"] == 4 == entry["counts"]["ledger_rows"]
        # Rows of other units name it in their messages; they are said, and stay.
        assert "ledger, messages of stage cut" in still_named(run, entry)


def test_a_plan_changes_nothing_and_counts(tmp_path: Path) -> None:
    run = draw_run(tmp_path, REMOTE[:3], True)
    files, rows, folders = files_of(run), rows_of(run), sorted(tmp_path.rglob("*"))
    assert plan(run, "1")["counts"] == {
        "lists": {}, "clip_rows": 1, "table_rows": 3, "files": 6, "ledger_rows": 4, "samples": 0,
    }  # fmt: skip
    assert (files_of(run), rows_of(run), sorted(tmp_path.rglob("*"))) == (files, rows, folders)


@pytest.mark.parametrize(
    "unknown,advice",
    [
        ("2.mp4", "expected a video_id"),
        ("1", "such as '1.mp4'"),
        (".*", "expected a video_id"),
        (clip_of("1.mp4"), "is a clip of '1.mp4'"),
        (NFD, "written with other code points"),
        ("\udcff.mp4", "expected a video_id"),
    ],
)
def test_what_is_not_found_is_refused(run_of_three: RunFolder, unknown: str, advice: str) -> None:
    with pytest.raises(InputError, match="knows no video") as refused:
        begin(run_of_three, unknown)
    assert advice in str(refused.value) and not (run_of_three.root / "takedowns").exists()


@pytest.fixture(scope="module")
def run_of_three(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return draw_run(tmp_path_factory.mktemp("three"), ["1.mp4", NFC, "a/1.mp4"])


def test_what_another_video_refers_to_stays(tmp_path: Path) -> None:
    run = draw_run(tmp_path, ["a.mp4", "a.mkv", "b.mp4"])
    sources = pq.read_table(tmp_path / "sources.parquet").to_pylist()
    sources[2]["path"] = sources[0]["path"]  # the same file under two ids
    schema = pq.read_schema(tmp_path / "sources.parquet")
    pq.write_table(pa.Table.from_pylist(sources, schema), tmp_path / "sources.parquet")
    with Ledger(run.ledger).open("scan", FINGERPRINT) as log:  # equal bytes have one scan
        files = find_holdings(run, "b.mp4")["files"]
        scan = next(file.removeprefix("per_frame/") for file in files if file.startswith("per_frame/"))
        log.append(("a.mkv", "x"), Outcome("a.mkv", "kept", outputs={"scan_file": scan}))
        log.append(("a.mkv/", "x"), Outcome("a.mkv/", "kept", outputs={"scan_file": "../clips.parquet"}))
        log.compact()
    assert source_files(run, "a.mp4", [sources[0]["path"]]) == set()  # a.json is a.mkv's as well
    assert source_files(run, "a.mkv", [sources[1]["path"]]) == {"sources/a.mkv"}
    assert not [file for file in find_holdings(run, "b.mp4")["files"] if file.startswith("per_frame")]
    assert "clips.parquet" not in find_holdings(run, "a.mkv/")["files"]


def test_files_of_clips_whose_ids_begin_alike_stay(tmp_path: Path) -> None:
    names = ("c1.mp4", "c10.mp4", "c1.v2.mp4", "bc1.mp4", "c1", "c1.mp4.json")
    for name in names:
        write(tmp_path / "videos" / "x" / name, "")
        write(tmp_path / "notes" / name, "")
    assert clip_files(RunFolder(tmp_path), {"c1"}) == {"videos/x/c1.mp4", "videos/x/c1"}


def test_an_id_that_is_a_clip_of_another(tmp_path: Path) -> None:
    other = clip_of("a.mp4")
    run = draw_run(tmp_path, ["a.mp4", other], True)
    before = rows_of(run)
    forget_clips(SelectConfig(), run, other, begin(run, other))
    left = {unit for _, unit in before - rows_of(run)}
    assert left == {other, clip_of(other), f"adapter/{clip_of(other)}/0", ""} and ("cut", other) in rows_of(run)


def test_numbers_and_longer_words_do_not_name_it(tmp_path: Path) -> None:
    run = draw_run(tmp_path, ["1", "2"], True)
    write(run.logs / "a.json", '{"attempt": 1, "at": 1.0, "name": "11", "file": "1.v2", "of": "x-1"}')
    write(run.logs / "b.jsonl", '{"x": 1}\n{"x": "video 1: torn"}\n')
    write(run.logs / "c.json", '{"1": true}')
    write(run.logs / "d.txt", "see cache/videos/1.mp4, or 1")
    write(run.logs / "e.txt", "1.5 v1 11 1-2 _1")
    write(run.root / "report" / "mine.html", "<b>1</b>")
    write(run.root / "report" / "curation.html", "<b>1</b>")
    write(run.root / "report" / "index.html", "<b>v1</b>")
    write(run.root / "cache" / "mine.json", '"1"')
    lines = {video: f'{{"unit": "{clip_of(video)}", "hashes": ["{clip_of("1")}"]}}\n' for video in ("1", "2")}
    write(run.report / "test_fingerprints.jsonl", "".join(lines.values()))
    entry = begin(run, "1")
    assert entry["pages"] == ["report/curation.html"]
    forget_clips(SelectConfig(), run, "1", entry)
    assert (run.report / "test_fingerprints.jsonl").read_text() == lines["2"]
    named = [name for name in still_named(run, entry) if not name.startswith("ledger")]
    assert named == [
        "cache/mine.json",
        "logs/b.jsonl",
        "logs/c.json",
        "logs/d.txt",
        "report/mine.html",
        "report/test_fingerprints.jsonl",
    ]
    assert (run.root / "report" / "index.html").exists() and not (run.root / "report" / "curation.html").exists()


def test_an_id_is_found_behind_escapes(tmp_path: Path) -> None:
    video = "m\u00fcller & 1.mp4"
    run = draw_run(tmp_path, [video, "b.mp4"])
    write(run.logs / "a.json", '"m\\u00fcller & 1.mp4"')
    write(run.logs / "b.html", "m&uuml;ller &amp; 1.mp4")
    write(run.logs / "c.html", "m%C3%BCller%20%26%201.mp4")
    write(run.logs / "d.html", "m%C3%BCller%20%26%201.mp4.bak")
    entry = begin(run, video)
    forget_clips(SelectConfig(), run, video, entry)
    assert [name for name in still_named(run, entry) if "logs" in name] == ["logs/a.json", "logs/b.html", "logs/c.html"]


def test_a_table_that_cannot_be_read_stops_it_before_anything_went(tmp_path: Path) -> None:
    run = draw_run(tmp_path, ["a.mp4", "b.mp4"])
    write(run.root / "export.parquet", "no table")
    before = files_of(run)
    with pytest.raises(DamagedFileError, match="export.parquet is damaged"):
        begin(run, "a.mp4")
    assert files_of(run) == before and not (run.root / "takedowns").exists()
