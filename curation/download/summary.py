"""Download summary: counts by state and reason, volume, and the trend of 403 responses."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.ledger.store import Outcome, ledger_rows

RISING = 1.5  # ratio of refusals in the second half to the first that counts as rising ...
RISING_SHARE = 0.02  # ... when they exceed this share


@dataclass(frozen=True)
class DownloadSummary:
    """Outcomes of the sources, and 403 responses per requested video in the first and in the second half of the
    requests."""

    states: dict[str, int]
    reasons: dict[str, int]
    gigabytes: float
    forbidden: tuple[float, float]

    @property
    def forbidden_rises(self) -> bool:
        """Whether refusals increase, a sign that yt-dlp is outdated."""
        first, second = self.forbidden
        return second > RISING_SHARE and second > RISING * first

    def lines(self) -> list[str]:
        """The summary as text."""
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items()) or "none"
        lines = [f"downloads: {states}, {self.gigabytes:.2f} GB (missing: {reasons})"]
        if any(self.forbidden):
            first, second = (100 * share for share in self.forbidden)
            advice = "; rising: upgrade yt-dlp" if self.forbidden_rises else ""
            lines.append(
                f"media refused with 403: {first:.1f} % in the first half, {second:.1f} % in the second{advice}"
            )
        return lines


def recorded_downloads(ledger: Path) -> list[Outcome]:
    """The outcomes of the download stage in a ledger folder, under its latest settings."""
    columns = ["unit", "fingerprint", "state", "reason", "error_class", "outputs", "recorded"]
    rows = ledger_rows(ledger, "download").select(columns).to_pylist()
    newest = max(rows, key=lambda row: row["recorded"])["fingerprint"] if rows else ""
    return [
        Outcome(
            row["unit"],
            row["state"],
            row["reason"],
            outputs=json.loads(row["outputs"]),
            error_class=row["error_class"],
        )
        for row in rows
        if row["fingerprint"] == newest
    ]


def summarise_downloads(outcomes: Iterable[Outcome]) -> DownloadSummary:
    """Count the outcomes of `curation.download.fetch.DownloadStage`."""
    recorded = list(outcomes)
    asked = sorted((one for one in recorded if one.outputs.get("asked")), key=lambda one: str(one.outputs["asked"]))
    half = len(asked) // 2
    return DownloadSummary(
        states=dict(Counter(one.state for one in recorded).most_common()),
        reasons=dict(Counter(one.reason or one.error_class for one in recorded if one.state != "kept").most_common()),
        gigabytes=sum(one.outputs["bytes"] for one in recorded if one.state == "kept") / 1e9,
        forbidden=(_forbidden(asked[:half]), _forbidden(asked[half:])),
    )


def _forbidden(outcomes: Sequence[Outcome]) -> float:
    return _mean([one.outputs.get("forbidden", 0) for one in outcomes])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
