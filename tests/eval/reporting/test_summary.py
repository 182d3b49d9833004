"""summary.json counts what the files say, and says None where nothing has run."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.clips import write_clips
from common.ledger.store import Ledger, Outcome
from common.runs import RunFolder, write_json
from eval.reporting.summary import KEYS, summarize


def test_nothing_has_run(tmp_path: Path) -> None:
    summary = summarize(RunFolder(tmp_path), {})
    assert tuple(summary) == KEYS
    assert summary["sources"] is summary["clips"] is summary["kept"] is summary["video"] is None
    assert summary["refused"] == summary["metrics"] == summary["seconds"] == {} and summary["faults"] == []
    assert summary["offsets"] == {"cases": None, "exact": None}
    assert set(summary["sync_c"].values()) == {None}


def test_sources_and_clips_are_counted_by_reason(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    states = [("kept", ""), ("rejected", "truncated"), ("rejected", "truncated"), ("failed", "failed probe")]
    rows = [{"video_id": str(i), "state": state, "reason": reason} for i, (state, reason) in enumerate(states)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "sources.parquet")
    decisions = [("kept", []), ("rejected", ["music", "too_long"]), ("rejected", ["music"]), ("pending", ["needs x"])]
    clips = [{"clip_id": f"c{i}", "decision": d, "reasons": r} for i, (d, r) in enumerate(decisions)]
    write_clips(run.clips_parquet, clips)
    summary = summarize(run, {})
    assert (summary["sources"], summary["clips"], summary["kept"]) == (4, 4, 1)
    assert summary["refused"] == {"truncated": 2, "music": 2, "too_long": 1}


def test_work_is_summed_per_stage_and_the_caller_may_override_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with Ledger(run.ledger).open("probe", "f" * 16) as log:
        for i, seconds in enumerate((1.25, 0.5)):
            log.append((f"v{i}", "h"), Outcome(f"v{i}", "kept", seconds=seconds))
    assert summarize(run, {})["seconds"] == {"probe": 1.8}
    assert summarize(run, {"seconds": {"curate": 3.0}, "else": 1})["seconds"] == {"curate": 3.0}


def test_the_test_that_counts_is_the_judged_method_over_its_swapped_control(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    pairs = [("adapter", "base", "sync_c", 0.5), ("adapter", "swapped_audio", "sync_d", 0.4)]
    pairs.append(("adapter", "swapped_audio", "sync_c", 0.001))
    tests = [{"a": a, "b": b, "metric": metric, "p_greater": p} for a, b, metric, p in pairs]
    methods = {"adapter": {"sync_c": {"value": 7.0}, "fid": {"value": None}}, "base": {"sync_c": {"value": 3.0}}}
    methods["swapped_audio"] = {}
    roles = {"adapter": "judged", "swapped_audio": "swapped", "base": "control"}
    write_json(run.report / "scores.json", {"methods": methods, "comparisons": tests, "roles": roles})
    summary = summarize(run, {})
    values = {"ground_truth": None, "adapter": 7.0, "swapped_audio": None, "base": 3.0}
    assert summary["sync_c"] == values | {"p_adapter_over_swapped": 0.001}
    assert summary["metrics"] == {"adapter": {"sync_c": 7.0, "fid": None}, "base": {"sync_c": 3.0}, "swapped_audio": {}}
