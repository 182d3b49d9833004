"""`summary.json`: the figures of the report for scripts."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from common.errors import damaged, shorten
from common.ledger.store import ledger_rows
from common.parquet import read_table
from common.runs import RunFolder, read_json, read_text
from eval.manifest import Methods, arrange

KEYS = (
    "sources",
    "clips",
    "kept",
    "refused",
    "faults",
    "false_refusals",
    "offsets",
    "sync_c",
    "metrics",
    "video",
    "seconds",
)


def summarize(run: RunFolder, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Every key of KEYS from the files of a run, overridden by `overrides`; parts that have not run are None or empty.

    `refused` counts sources and clips per reason (one with two reasons counts under both), `seconds` is the work per
    stage, from the ledger. Other keys of `overrides` are ignored.
    """
    scores = read_optional(run.report / "scores.json") or {}
    methods = scored_methods(scores)
    summary = _counts(run) | _planted(run)
    summary |= {"sync_c": _sync_c(scores, methods), "metrics": _values(scores), "seconds": _seconds(run)}
    summary["video"] = "videos/demo.mp4" if (run.videos / "demo.mp4").exists() else None
    return {key: overrides.get(key, summary[key]) for key in KEYS}


def read_optional(path: Path) -> Any:
    """The content of a JSON file, None when there is no such file."""
    return read_json(path) if path.exists() else None


def read_run_recipe(run: RunFolder) -> dict[str, Any]:
    """The resolved recipe of a run, {} where none is recorded. Raises DamagedFileError."""
    if not run.recipe_yaml.exists():
        return {}
    try:
        recipe = yaml.safe_load(read_text(run.recipe_yaml))
    except yaml.YAMLError as error:
        raise damaged(run.recipe_yaml, error, "is not valid YAML") from error
    if not isinstance(recipe, dict):
        raise damaged(run.recipe_yaml, f"it holds {shorten(repr(recipe))}, expected keys with values")
    return recipe


def scored_methods(scores: Mapping[str, Any]) -> Methods:
    """The methods of scores.json in the roles that the manifest gave them."""
    return arrange(scores.get("methods", {}), scores.get("roles", {}))


def judged_method(run: RunFolder) -> str:
    """The method that a judged run is about; "" for a run without scores."""
    return scored_methods(read_optional(run.report / "scores.json") or {}).judged


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file, none when there is no such file."""
    return read_table(path).to_pylist() if path.exists() else []


def _counts(run: RunFolder) -> dict[str, Any]:
    sources, clips = Path(run.root) / "sources.parquet", run.clips_parquet
    rows, listed = read_rows(clips), read_rows(sources)
    reasons = Counter(row["reason"] for row in listed if row.get("state") == "rejected")
    reasons.update(reason for row in rows if row["decision"] == "rejected" for reason in row["reasons"] or [])
    return {
        "sources": len(listed) if sources.exists() else None,
        "clips": len(rows) if clips.exists() else None,
        "kept": sum(row["decision"] == "kept" for row in rows) if clips.exists() else None,
        "refused": dict(reasons.most_common()),
    }


def _planted(run: RunFolder) -> dict[str, Any]:
    faults = read_optional(run.report / "faults.json") or {}
    empty: dict[str, Any] = {"faults": [], "false_refusals": None, "offsets": {"cases": None, "exact": None}}
    return {key: faults.get(key, value) for key, value in empty.items()}


def swapped_key(methods: Methods) -> str:
    """The key of `sync_c` in the summary that holds the one-sided p of the judged method over its swapped control."""
    return f"p_{methods.judged}_over_swapped"


def _sync_c(scores: Mapping[str, Any], methods: Methods) -> dict[str, float | None]:
    scored = scores.get("methods", {})
    sync = {name: scored.get(name, {}).get("sync_c", {}).get("value") for name in methods.order}
    if not methods.swapped:
        return sync
    tests = [test for test in scores.get("comparisons", []) if test["metric"] == "sync_c"]
    over = [test["p_greater"] for test in tests if (test["a"], test["b"]) == (methods.judged, methods.swapped)]
    return sync | {swapped_key(methods): over[0] if over else None}


def _values(scores: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    methods = scores.get("methods", {})
    return {name: {metric: score["value"] for metric, score in scored.items()} for name, scored in methods.items()}


def _seconds(run: RunFolder) -> dict[str, float]:
    rows = ledger_rows(run.ledger).select(["stage", "seconds"]).to_pylist()
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + (row["seconds"] or 0.0)
    return {stage: round(total, 1) for stage, total in sorted(seconds.items())}
