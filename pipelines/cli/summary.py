"""Closing summary of a command: clips kept, roles that clips wait for, planted faults found."""

from collections.abc import Mapping
from typing import Any

from common.runs import RunFolder, read_json
from curation.download.summary import recorded_downloads, summarise_downloads
from curation.reporting.summary import SOURCES_FILE, summarise

PLANTED = ("faults", "offsets", "false_refusals", "unfaulted")


def closing_words(run: RunFolder) -> list[str]:
    """Lines for a person about what the run folder holds now; empty before anything was curated."""
    curated = run.clips_parquet.exists() and (run.root / SOURCES_FILE).exists()  # drawn clips have no sources
    lines = summarise(run).lines() if curated else []
    if downloads := recorded_downloads(run.ledger):
        lines = [*summarise_downloads(downloads).lines(), *lines]
    planted = run.report / "faults.json"
    return lines + (fault_table(read_json(planted, *PLANTED)) if planted.exists() else [])


def fault_table(found: Mapping[str, Any]) -> list[str]:
    """Planted faults, found for the right reason, and what was refused without one."""
    lines = [f"{'planted fault':20}{'cases':>6}{'found':>7}{'wrong reason':>14}{'recall':>8}{'precision':>11}"]
    lines += [
        f"{row['kind']:20}{row['cases']:>6}{row['found']:>7}{row['wrong_reason']:>14}"
        f"{row['recall']:>8.2f}{'-' if row['precision'] is None else format(row['precision'], '.2f'):>11}"
        for row in found["faults"]
    ]
    offsets = found["offsets"]
    return [
        *lines,
        f"offsets recovered exactly: {offsets['exact']} of {offsets['cases']}, at 0 afterwards: {offsets['zero']}",
        f"unfaulted clips refused: {found['false_refusals']} of {found['unfaulted']}",
    ]
