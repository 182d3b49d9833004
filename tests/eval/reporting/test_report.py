"""The report opens offline, shows what the files of a run say, and lives with any part missing."""

import json
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from common.clips import write_clips
from common.media.write import write_video
from common.progress import MetricLog
from common.query import METRICS_SCHEMA
from common.runs import RunFolder, read_json, write_json
from eval.config import ScoreConfig
from eval.features.records import ClipFeatures, Features
from eval.manifest import Methods, arrange
from eval.metrics.clip_metrics import clip_records
from eval.reporting.report import headline, p_text, write_report
from eval.reporting.sections import number, one_of_each
from eval.reporting.summary import KEYS
from eval.scoring.eval_table import EvalTable
from eval.scoring.scores import score_methods
from eval.sets.catalog import TEST_SET_FILE, TestClip, TestSet, write_test_set

SYNC_C = {"ground_truth": 8.0, "adapter": 7.0, "swapped_audio": 4.0, "base": 3.5}
ROLES = {"adapter": "judged", "swapped_audio": "swapped", "base": "control"}
VOID = {"meta", "link", "img", "br", "hr", "input", "source"}


def frames(count: int = 30, side: int = 32) -> np.ndarray:
    ramp = np.linspace(0, 255, side, dtype=np.uint8)
    picture = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=-1)
    return np.stack([np.roll(picture, i, axis=1) for i in range(count)])


def write_curation(run: RunFolder) -> None:
    rows = []
    reasons: list[list[str]] = [[], [], ["music"], ["music", "low_quality"], ["needs sync_scorer"]]
    for i, decision in enumerate(["kept", "kept", "rejected", "rejected", "pending"]):
        row: dict[str, Any] = {"clip_id": f"c{i}", "video_id": f"v{i}.mp4", "t_start": 0.0, "t_end": 1.2}
        row |= {"duration": 1.2, "sync_c": 6.5, "caption": "<script>alert(1)</script>"}
        rows.append(row | {"decision": decision, "reasons": reasons[i]})
    write_clips(run.clips_parquet, rows)
    for name in ("c0", "c2"):
        write_video(run.clips / f"{name}.mp4", frames(), np.zeros(30 * 640, np.float32))
    sources = [{"video_id": f"v{i}.mp4", "path": f"/nowhere/v{i}.mp4", "state": "kept", "reason": ""} for i in range(5)]
    sources.append({"video_id": "v5.mp4", "path": "/nowhere/v5.mp4", "state": "rejected", "reason": "no_audio"})
    pq.write_table(pa.Table.from_pylist(sources), Path(run.root) / "sources.parquet")
    faults = {"faults": [{"kind": "music", "cases": 3, "found": 2, "wrong_reason": 1}], "false_refusals": 0}
    write_json(run.report / "faults.json", faults | {"offsets": {"cases": 21, "exact": 20}})


def write_scores(run: RunFolder) -> None:
    rng = np.random.default_rng(0)
    records, seen, real = [], {}, {}
    for i in range(8):
        features = rng.normal(size=(3, 4))
        real[f"h{i}"] = {name: {"features": features} for name in ("fid", "fvd")}
        for method, mean in SYNC_C.items():
            value = mean + rng.normal(0, 0.3)
            sync = {"sync_c": value, "sync_d": 12 - value, "sync_c_valid": value, "sync_offset": 0, "offset_zero": 1}
            arrays: dict[str, Any] = {"sync": {**sync, "windows": 40, "status": "ok"}}
            near = {"features": features + rng.normal(0, 0.1, features.shape), "status": "ok"}
            seen[f"{method}/h{i}"] = arrays | {"fid": near, "fvd": near}
            row = {"method": method, "clip_id": f"h{i}", "seed": i}
            records += clip_records(
                row, ClipFeatures(Features(seen[f"{method}/h{i}"])), {"sync", "fid", "fvd"}, "paper"
            )
    config = ScoreConfig(arrange(SYNC_C, ROLES).comparisons, resamples=200, swap_draws=9)
    scores, whole = score_methods(EvalTable(records, seen, real, "paper"), config)
    write_json(run.report / "scores.json", scores | {"manifest": "0123456789abcdef", "roles": ROLES})
    table = pa.Table.from_pylist([asdict(r) for r in sorted(records + whole)], METRICS_SCHEMA)
    pq.write_table(table, run.report / "metrics.parquet")


def write_run(root: Path) -> RunFolder:
    run = RunFolder(root)
    write_curation(run)
    write_scores(run)
    write_video(run.videos / "demo.mp4", frames(50), np.sin(np.arange(50 * 640) / 20).astype(np.float32) / 2)
    Image.fromarray(frames(1)[0]).save(run.cache / "portrait.png")
    about = {"image": str(run.cache / "portrait.png"), "prompt": "a person & a voice", "chunk_starts": [0, 25]}
    write_json(run.videos / "demo.json", about)
    curve = np.linspace(2, 3, 37).tolist()
    sync = {"status": "ok", "sync_c": 6.25, "sync_d": 2.5, "sync_offset": 0, "curve": curve, "curve_start": 6}
    write_json(run.report / "demo_sync.json", sync)
    log = MetricLog(run.logs / "train.jsonl")
    for step in range(1, 21):
        gap = {"heldout_loss": 0.4, "audio_gap": 0.001 * step} if step % 5 == 0 else {}
        log.write(step=step, loss=1 / step, **gap)
    log.close()
    run.recipe_yaml.write_text("name: tiny\n")
    versions = {
        "python": "3.11",
        "packages": {"torch": "2.13.0"},
        "models": {"vae": "ab" * 32, "adapter": None},
        "code": {},
    }
    write_json(Path(run.root) / "versions.json", versions)
    return run


class Page(HTMLParser):
    """Collects outside references and checks that every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        names = ("src", "href", "poster", "action", "data")
        self.references += [value or "" for name, value in attrs if name.split(":")[-1] in names]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def page(run: RunFolder) -> str:
    return write_report(run, {"seconds": {"train": 12.5}}).read_text()


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert [r for r in parsed.references if not r.startswith(("data:", "#"))] == []
    assert not re.search(r"url\((?!#)|@import|fetch\(|https?://(?!www\.w3\.org)", page)
    assert "data:video/mp4;base64," in page and "data:image/jpeg;base64," in page


def test_the_page_shows_what_the_files_say(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    for shown in (
        "The mouth follows the voice", "a person &amp; a voice", "low quality", "no audio", "ground truth",
        "real vs real", "adapter against swapped audio, clip by clip", "67 %", "recovered exactly: 20 of 21",
        "12.5 s", "skipped: no weights", "name: tiny", "abababababababab", "when another clip", "end 2.0 %",
    ):  # fmt: skip
        assert shown in text or shown in page, shown
    assert "<script>alert" not in page


def test_the_page_names_the_list_its_clips_are_of(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_scores(run)
    assert "Test set" not in write_report(run, {}).read_text()
    clips = tuple(TestClip(f"h{i}", f"v{i}.mp4", 0.0, 1.2) for i in range(10))
    listed = TestSet("small_world", "whole picture, v1", 0, clips)
    write_test_set(Path(run.root) / TEST_SET_FILE, listed)
    rows = [
        {"method": "adapter", "clip_id": name, "video": f"videos/{name}.mp4", "reference": ""}
        for name in ("h0", "h1", "stranger")
    ]
    Path(run.root, "videos").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), run.videos / "manifest.parquet")
    text = " ".join(re.sub(r"<[^>]+>", "", write_report(run, {}).read_text()).split())
    about = f"Test set small_world (list {listed.sha256[:12]}, whole picture, v1): 2 of its 10 clips were judged"
    assert f"{about}, and 1 that are not in it" in text


def test_colours_follow_the_page_and_plots_keep_their_ids_apart(page: str) -> None:
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 3
    assert not any(re.search(r"#0([1-6])(0\1){2}", svg) for svg in svgs)
    ids = [re.findall(r'<clipPath id="([^"]+)"', svg) for svg in svgs]
    assert len({i for group in ids for i in group}) == sum(map(len, ids)) > 0


def test_summary_has_exactly_its_keys_and_counts_the_files(run: RunFolder, page: str) -> None:
    summary = read_json(run.report / "summary.json")
    assert sorted(summary) == sorted(KEYS)
    assert (summary["sources"], summary["clips"], summary["kept"]) == (6, 5, 2)
    assert summary["refused"] == {"music": 2, "low_quality": 1, "no_audio": 1}
    assert summary["faults"] == [{"kind": "music", "cases": 3, "found": 2, "wrong_reason": 1}]
    assert summary["offsets"] == {"cases": 21, "exact": 20} and summary["false_refusals"] == 0
    assert set(summary["sync_c"]) == {*SYNC_C, "p_adapter_over_swapped"}
    assert all(abs(summary["sync_c"][method] - mean) < 0.5 for method, mean in SYNC_C.items())
    assert summary["sync_c"]["p_adapter_over_swapped"] == 1 / 2**8
    assert summary["metrics"]["adapter"]["fid"] > 0 and summary["metrics"]["adapter"]["iqa"] is None
    assert summary["video"] == "videos/demo.mp4" and summary["seconds"] == {"train": 12.5}


def test_the_same_files_give_the_same_bytes(run: RunFolder, page: str) -> None:
    assert write_report(run, {"seconds": {"train": 12.5}, "not a key": 1}).read_text() == page


def test_an_empty_run_is_a_page_that_says_so(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    text = write_report(run, {}).read_text()
    Page(text)
    assert text.count("not run") == 4 and "Not yet judged" in text
    summary = read_json(run.report / "summary.json")
    assert sorted(summary) == sorted(KEYS) and summary["clips"] is None and summary["video"] is None


PARTS = (
    "clips.parquet", "sources.parquet", "logs/train.jsonl", "videos/demo.mp4", "videos/demo.json", "versions.json",
    "report/metrics.parquet", "report/scores.json", "report/demo_sync.json", "report/faults.json", "recipe.yaml",
    "cache/portrait.png", "clips/c0.mp4",
)  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_any_part_may_be_missing(run: RunFolder, part: str) -> None:
    path, aside = Path(run.root) / part, Path(run.root) / "aside"
    path.rename(aside)
    try:
        parsed = Page(write_report(run, {}).read_text())
    finally:
        aside.rename(path)
    assert parsed.open == []


def test_the_headline_never_claims_what_the_test_does_not_show() -> None:
    def title(own: float | None, swapped: float | None, p: float | None) -> str:
        sync = {"ours": own, "theirs_swapped": swapped, "p_ours_over_swapped": p}
        return headline({"sync_c": sync}, Methods("ours", "theirs_swapped"))[0]

    assert title(7.0, 4.0, 0.001) == "The mouth follows the voice"
    assert title(7.0, 4.0, 0.02) == title(4.0, 7.0, 0.001) == "The mouth does not yet follow the voice"
    assert title(7.0, None, None) == "Not yet judged"
    assert headline({"sync_c": {"ours": 7.0}}, Methods("ours", "", ("theirs",)))[0] == "ours: Sync-C 7.00"
    assert headline({"sync_c": {}}, Methods())[0] == "Not yet judged"


def test_the_page_of_another_system_is_laid_out_around_its_own_methods(tmp_path: Path) -> None:
    run, names = RunFolder(tmp_path), ("ground_truth", "theirs", "ours")
    records, seen = [], {}
    for i in range(4):
        for place, method in enumerate(names):
            sync = {"sync_c": 8.0 - place + 0.1 * i, "sync_d": 6.0, "sync_c_valid": 7.0, "sync_offset": 0}
            seen[f"{method}/h{i}"] = {"sync": {**sync, "offset_zero": 1, "windows": 40, "status": "ok"}}
            row, features = {"method": method, "clip_id": f"h{i}", "seed": 0}, Features(seen[f"{method}/h{i}"])
            records += clip_records(row, ClipFeatures(features), {"sync"}, "paper")
    methods = arrange(names, {"ours": "judged"})
    config = ScoreConfig(methods.comparisons, resamples=50, swap_draws=0)
    scores, whole = score_methods(EvalTable(records, seen, {}, "paper"), config)
    write_json(run.report / "scores.json", scores | {"roles": {"ours": "judged"}})
    table = pa.Table.from_pylist([asdict(r) for r in sorted(records + whole)], METRICS_SCHEMA)
    pq.write_table(table, run.report / "metrics.parquet")

    page = write_report(run, {}).read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", page).split())
    assert "<h1>ours: Sync-C" in page and "ours against theirs, clip by clip" in text
    assert not re.search(r"adapter|swapped audio|Reported", text)
    for rows in re.findall(r"<table>(.*?)</table>", page, re.S):
        lines = [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.S) for line in re.findall(r"<tr.*?</tr>", rows, re.S)
        ]
        if lines and lines[0][0] in ("metric", "method"):
            columns = zip(*lines[1:], strict=True)
            assert all(any(cell.strip() not in ("", "–") for cell in column) for column in columns)
    rows = re.search(r"<th>method</th>.*?</table>", page, re.S)
    assert rows and re.findall(r"<td>(ground truth|ours|theirs)</td>", rows[0]) == ["ground truth", "ours", "theirs"]


def test_numbers_read_as_people_write_them() -> None:
    assert (number(-1.234), number(-0.001, 2), number(None), number(12345.6, 1)) == ("−1.23", "0.00", "–", "12,345.6")
    assert (p_text(0.0432), p_text(6.2e-8), p_text(0.0)) == ("0.043", "6e-8", "0")


def test_refused_clips_show_each_reason_before_repeating_one() -> None:
    rows = [{"clip_id": i, "reasons": [reason]} for i, reason in enumerate("aaabbc")]
    assert [row["clip_id"] for row in one_of_each(rows)] == [0, 3, 5, 1, 4, 2]


def test_hostile_names_are_text_on_the_page(tmp_path: Path) -> None:
    hostile = "\"><script>alert('$x$')</script>"
    run = RunFolder(tmp_path / "<script>alert('$x$')<")
    write_json(run.videos / "demo.json", {"prompt": hostile})
    run.recipe_yaml.write_text(json.dumps({"name": hostile}))
    write_json(run.root / "versions.json", {"models": {hostile: "ab"}, "code": {hostile: "cd"}})
    text = write_report(run, {"seconds": {hostile: 1.0}}).read_text()
    assert "<script>alert" not in text and text.count("&lt;script&gt;alert") >= 5
    Page(text)
