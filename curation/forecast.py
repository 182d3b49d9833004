"""What a download will cost, from the look-ups made so far, and what it came to, from its outcomes."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.ledger import Outcome
from curation.download import DownloadConfig

RISING = 1.5  # times as many refusals in the second half as in the first are no accident ...
RISING_SHARE = 0.02  # ... where they are more than this share


@dataclass(frozen=True)
class Forecast:
    """Of `sources` videos `looked_up` were asked for; `alive_share` of them (0 to 1) can be had. What all of them will
    come to: `hours` of video, `gigabytes` (None where sites do not announce sizes), `days` at the rate of the exits."""

    sources: int
    looked_up: int
    alive_share: float
    hours: float
    gigabytes: float | None
    days: float
    dead: dict[str, int]

    def lines(self) -> list[str]:
        """The forecast in words."""
        dead = ", ".join(f"{reason} {count}" for reason, count in self.dead.items()) or "none"
        size = "of unknown size" if self.gigabytes is None else f"{self.gigabytes:.1f} GB"
        alive = f"{100 * self.alive_share:.0f} % alive (dead: {dead})"
        return [
            f"{self.looked_up} of {self.sources} sources looked up: {alive}",
            f"to fetch: {self.hours:.1f} hours of video, {size}, {self.days:.1f} days through the exits",
        ]


def forecast(config: DownloadConfig, sources: int, swept: Iterable[Outcome]) -> Forecast:
    """Extrapolate from the outcomes of `curation.download.sweep_stage` over a sample of the sources, or all of them.

    Days are those of the slower of the two limits, look-ups and bytes. Raises ValueError when nothing was looked up.
    """
    told = [outcome for outcome in swept if outcome.state in ("kept", "rejected")]
    if not told:
        raise ValueError("No source was looked up; run the sweep over at least a sample of them.")
    announced = [outcome.outputs.get("announced") or {} for outcome in told if outcome.state == "kept"]
    alive = sources * len(announced) / len(told)
    lengths = [each["duration"] for each in announced if each.get("duration")]
    sizes = [each["bytes"] for each in announced if each.get("bytes")]
    size = alive * _mean(sizes) if sizes else None
    hours_by_rate = alive / sum(exit.per_hour for exit in config.exits)
    bounded = all(exit.max_bytes_per_second for exit in config.exits)
    bandwidth = sum(exit.max_bytes_per_second for exit in config.exits)
    hours_by_bytes = size / bandwidth / 3600 if size and bounded else 0.0
    dead = Counter(outcome.reason for outcome in told if outcome.state == "rejected")
    return Forecast(
        sources=sources,
        looked_up=len(told),
        alive_share=len(announced) / len(told),
        hours=alive * _mean(lengths) / 3600,
        gigabytes=None if size is None else size / 1e9,
        days=max(hours_by_rate, hours_by_bytes) / 24,
        dead=dict(dead.most_common()),
    )


@dataclass(frozen=True)
class DownloadSummary:
    """What became of the sources, and how often media were refused with 403: per video asked for, in the first and in
    the second half of the time."""

    states: dict[str, int]
    reasons: dict[str, int]
    gigabytes: float
    forbidden: tuple[float, float]

    @property
    def forbidden_rises(self) -> bool:
        """Whether refusals grow, the sign that yt-dlp has become too old."""
        first, second = self.forbidden
        return second > RISING_SHARE and second > RISING * first

    def lines(self) -> list[str]:
        """The summary in words."""
        states = ", ".join(f"{count} {state}" for state, count in self.states.items())
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items()) or "none"
        lines = [f"downloads: {states}, {self.gigabytes:.2f} GB (not here: {reasons})"]
        if any(self.forbidden):
            first, second = (100 * share for share in self.forbidden)
            advice = "; it rises: upgrade yt-dlp" if self.forbidden_rises else ""
            lines.append(
                f"media refused with 403: {first:.1f} % in the first half, {second:.1f} % in the second{advice}"
            )
        return lines


def summarise_downloads(outcomes: Iterable[Outcome]) -> DownloadSummary:
    """Count the outcomes of `curation.download.download_stage`."""
    told = list(outcomes)
    asked = sorted((one for one in told if one.outputs.get("asked")), key=lambda one: str(one.outputs["asked"]))
    half = len(asked) // 2
    return DownloadSummary(
        states=dict(Counter(one.state for one in told).most_common()),
        reasons=dict(Counter(one.reason or one.error_class for one in told if one.state != "kept").most_common()),
        gigabytes=sum(one.outputs["bytes"] for one in told if one.state == "kept") / 1e9,
        forbidden=(_forbidden(asked[:half]), _forbidden(asked[half:])),
    )


def _forbidden(outcomes: Sequence[Outcome]) -> float:
    return _mean([one.outputs.get("forbidden", 0) for one in outcomes])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
