"""Curation forecast: hours, CPU cores, GPUs, bytes and days by stage, scaled from a small run (the pilot).

Costs of stages that the pilot ran are scaled per listed video, which includes the share of videos that each stage
passes on, with a bootstrap interval over its videos. Other stages use a default rate per hour of video, and the plan
marks them as such.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from common.errors import InputError
from curation.config import DownloadConfig
from curation.download.stored import is_stored
from curation.reporting.pilot import BASES, Pilot, resample
from curation.reporting.rates import (
    ALIVE,
    BYTES_PER_HOUR,
    GB,
    HOURS_PER_VIDEO,
    KEPT,
    RATES,
    SHARD_BYTES_PER_HOUR,
)
from curation.sources.remote import Row

DAY = 24.0
COVERAGE = (5, 95)  # percentiles of the interval
FEW = 20  # videos in a pilot, below which its interval is unreliable
STAGES = (
    "sweep",
    "download",
    "probe",
    "scan",
    "cut",
    "speech",
    "lips",
    "sync",
    "text",
    "quality",
    "captions",
    "latents",
)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 90 % interval; no interval where nothing was measured."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self) -> str:
        """The figure as text."""
        digits = 1 if self.value < 100 else 0
        if self.low is None or self.high is None:
            return f"{self.value:,.{digits}f}"
        return f"{self.value:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


@dataclass(frozen=True)
class Machines:
    """Hardware that runs the stages."""

    cpus: int = 1
    gpus: int = 0

    def __post_init__(self) -> None:
        if self.cpus < 1 or self.gpus < 0:
            raise InputError(f"{self.cpus} CPU cores and {self.gpus} GPUs: expected at least 1 core and 0 GPUs.")


@dataclass(frozen=True)
class Listed:
    """Size of a source list: videos, remote ones among them, and hours of annotated spans (None: whole videos)."""

    videos: int
    remote: int
    span_hours: float | None


@dataclass(frozen=True)
class StagePlan:
    """One stage: `hours` on the machines or the configured egresses, of them `limit` ("egresses", "CPU cores", "GPUs")
    sets the pace; bytes it writes and fetches. `measured`: from the pilot; else `origin` says where the rate is from.
    """

    stage: str
    limit: str
    hours: Estimate
    cpu_hours: Estimate
    gpu_hours: Estimate
    disk_gb: Estimate
    wire_gb: Estimate
    measured: bool
    origin: str


@dataclass(frozen=True)
class Plan:
    """Forecast of a curation; `unknown` lists stages with neither a pilot nor a rate, excluded from all sums."""

    listed: Listed
    pilot_videos: int
    video_hours: Estimate
    clip_hours: Estimate
    kept_hours: Estimate
    stages: tuple[StagePlan, ...]
    unknown: tuple[str, ...]
    assumed_alive: bool
    advice: str

    def lines(self) -> list[str]:
        """The plan as a table for a terminal, then the assumptions and the advice."""
        head = f"{'stage':<10}{'hours':>22}{'CPU hours':>24}{'GPU hours':>22}{'disk GB':>24}{'fetched GB':>24}  from"
        lines = [
            f"{self.listed.videos:,} videos listed, {self.listed.remote:,} of them to be fetched",
            f"hours of video {self.video_hours.text()}, of clips {self.clip_hours.text()}, "
            f"kept {self.kept_hours.text()}",
            head,
            *map(_stage_line, self.stages),
            f"one stage after the other: {sum(stage.hours.value for stage in self.stages) / DAY:,.1f} days",
        ]
        lines += [f"{stage.stage}: not measured; {stage.origin}" for stage in self.stages if not stage.measured]
        if self.unknown:
            lines.append(f"not in these figures, for want of a pilot: {', '.join(self.unknown)}")
        if not self.pilot_videos:
            lines.append(
                f"no pilot: {HOURS_PER_VIDEO * 60:.0f} minutes a video and {KEPT:.0%} of the hours kept are assumed; "
                "curate a few hundred videos and give that run"
            )
        elif self.pilot_videos < FEW:
            lines.append(f"the pilot holds {self.pilot_videos} videos; below {FEW} the intervals promise too much")
        if self.assumed_alive:
            lines.append(f"nobody has looked which videos are still there; {ALIVE:.0%} are assumed to be")
        return [*lines, self.advice]


def listed(rows: Iterable[Row]) -> Listed:
    """Count source rows (`list_sources`), each with `url` and `segments` if it is to be fetched."""
    videos = remote = 0
    span_seconds, whole = 0.0, False
    for row in rows:
        videos += 1
        remote += "url" in row and not is_stored(row)
        spans = row.get("segments") or ()
        whole = whole or (not spans and "refused" not in row)
        span_seconds += sum(span["end"] - span["start"] for span in spans)
    return Listed(videos, remote, None if whole else span_seconds / 3600)


def make_plan(
    sources: Listed,
    download: DownloadConfig,
    machines: Machines,
    pilot: Pilot | None = None,
    stages: Sequence[str] = STAGES,
) -> Plan:
    """Forecast `stages` of curating `sources`; stages of the pilot that are not named there are added.

    Raises ValueError for a list without videos.
    """
    if not sources.videos:
        raise InputError("The list of sources names no video; nothing can be planned.")
    totals = _Totals(sources, pilot)
    others = [stage for stage in (pilot.cpu if pilot else ()) if stage not in stages]
    before = stages.index("captions") if "captions" in stages else len(stages)
    rows: list[StagePlan] = []
    unknown: list[str] = []
    for stage in (*stages[:before], *others, *stages[before:]):
        if stage in ("sweep", "download"):
            if sources.remote and (stage == "download" or download.sweep):
                rows.append(_fetching(stage, totals, download))
        elif totals.measured(stage) or stage in RATES:
            rows.append(_working(stage, totals, machines))
        else:
            unknown.append(stage)
    return Plan(
        listed=sources,
        pilot_videos=pilot.videos if pilot else 0,
        video_hours=totals.estimate("hours"),
        clip_hours=totals.estimate("clip_hours"),
        kept_hours=totals.estimate("kept_hours"),
        stages=tuple(rows),
        unknown=tuple(unknown),
        assumed_alive=totals.alive < 1,
        advice=_advice(rows, machines, download),
    )


class _Totals:
    """Sums over all listed videos as arrays: the figure itself, then the same from every bootstrap draw."""

    def __init__(self, sources: Listed, pilot: Pilot | None) -> None:
        self.sources, self.pilot = sources, pilot
        self._measured: dict[str, np.ndarray] = {}
        # Local videos give no estimate of how many listed videos still exist.
        asked = pilot is not None and bool({"sweep", "download"} & set(pilot.cpu))
        self.alive = ALIVE if sources.remote and not asked else 1.0
        if pilot:
            present = [name for name in BASES if pilot.bases[name].any() and (name != "alive" or asked)]
            columns = {name: pilot.bases[name] for name in present}
            columns |= {f"cpu {stage}": hours for stage, hours in pilot.cpu.items()}
            columns |= {f"gpu {stage}": hours for stage, hours in pilot.gpu.items()}
            drawn = resample(np.stack(list(columns.values()), axis=1)) * sources.videos * self.alive
            self._measured = dict(zip(columns, drawn.T, strict=True))

    def measured(self, stage: str) -> bool:
        return self.pilot is not None and stage in self.pilot.cpu

    def of(self, name: str) -> np.ndarray:
        """The total of a basis, or of "cpu <stage>" and "gpu <stage>"; unmeasured ones are derived from the others."""
        if name in self._measured:
            return self._measured[name]
        spans = self.sources.span_hours
        derive: dict[str, Callable[[], np.ndarray]] = {
            "alive": lambda: np.array([self.sources.videos * self.alive]),
            "hours": lambda: self.of("alive") * HOURS_PER_VIDEO,
            "clip_hours": lambda: self.of("hours") if spans is None else self.of("alive") / self.sources.videos * spans,
            "kept_hours": lambda: self.of("clip_hours") * KEPT,
            "wire_bytes": lambda: self.of("hours") * BYTES_PER_HOUR,
            "clip_bytes": lambda: self.of("clip_hours") * BYTES_PER_HOUR,
            "shard_bytes": lambda: self.of("kept_hours") * SHARD_BYTES_PER_HOUR,
        }
        return derive[name]()

    def estimate(self, name: str, unit: float = 1.0) -> Estimate:
        return _estimate(self.of(name) / unit)


def _estimate(drawn: np.ndarray) -> Estimate:
    if len(drawn) < 3:
        return Estimate(float(drawn[0]))
    low, high = np.percentile(drawn[1:], COVERAGE)
    return Estimate(float(drawn[0]), float(low), float(high))


NOTHING = Estimate(0.0)


def _fetching(stage: str, totals: _Totals, download: DownloadConfig) -> StagePlan:
    """Plan of the sweep or of the download: limited by the egresses, not by this machine."""
    remote = totals.sources.remote / totals.sources.videos
    rates = [egress.per_hour for egress in download.egress]
    measured = totals.pilot is not None and bool(totals.pilot.bases["wire_bytes"].any())
    if stage == "sweep":
        paced = np.array([totals.sources.remote]) / sum(download.sweep_per_hour or rate for rate in rates)
        return StagePlan(
            stage,
            "egresses",
            _estimate(paced),
            NOTHING,
            NOTHING,
            NOTHING,
            NOTHING,
            False,
            "the rate limits of the egresses",
        )
    size = totals.of("wire_bytes") * remote
    paced = totals.of("alive") * remote / sum(rates)
    if all(egress.max_bytes_per_second for egress in download.egress):
        paced = np.maximum(paced, size / sum(egress.max_bytes_per_second for egress in download.egress) / 3600)
    cpu = _estimate(totals.of("cpu download")) if totals.measured("download") else NOTHING
    origin = "" if measured else "0.9 GB for an hour of 720p, and the rate limits of the egresses"
    disk = _estimate(size / GB)
    return StagePlan(stage, "egresses", _estimate(paced), cpu, NOTHING, disk, disk, measured, origin)


def _working(stage: str, totals: _Totals, machines: Machines) -> StagePlan:
    measured = totals.measured(stage)
    if measured:
        cpu, gpu, origin = totals.of(f"cpu {stage}"), totals.of(f"gpu {stage}"), ""
    else:
        rate = RATES[stage]
        basis, on_gpu = totals.of(rate.basis), machines.gpus > 0 and rate.gpu > 0
        cpu, gpu, origin = (
            basis * (rate.beside if on_gpu else rate.cpu),
            basis * (rate.gpu if on_gpu else 0),
            rate.origin,
        )
    on_cpus, on_gpus = cpu / machines.cpus, gpu / max(machines.gpus, 1)
    written = {"cut": "clip_bytes", "latents": "shard_bytes"}.get(stage)
    return StagePlan(
        stage=stage,
        limit="GPUs" if on_gpus[0] > on_cpus[0] else "CPU cores",
        hours=_estimate(np.maximum(on_cpus, on_gpus)),
        cpu_hours=_estimate(cpu),
        gpu_hours=_estimate(gpu),
        disk_gb=totals.estimate(written, GB) if written else NOTHING,
        wire_gb=NOTHING,
        measured=measured,
        origin=origin,
    )


def _advice(rows: Sequence[StagePlan], machines: Machines, download: DownloadConfig) -> str:
    """The bottleneck, and the smallest addition that moves it to another resource, at most a doubling."""
    have = {"egresses": len(download.egress), "CPU cores": machines.cpus, "GPUs": max(machines.gpus, 1)}
    hours = {limit: sum(row.hours.value for row in rows if row.limit == limit) for limit in have}
    first, second, _ = sorted(hours, key=lambda limit: -hours[limit])
    # Without another resource in use the quotient is huge or undefined; the cap below applies.
    removing = ceil(have[first] * hours[first] / hours[second]) if hours[second] else 2 * have[first]
    more = max(1, min(removing, 2 * have[first]) - have[first])
    then = hours[first] * have[first] / (have[first] + more)
    name = first if more > 1 else first.removesuffix("es" if first == "egresses" else "s")
    return (
        f"the bottleneck is the {first} ({have[first]}): {hours[first] / DAY:,.1f} days of the work; "
        f"{more} more {name} would make it {then / DAY:,.1f} (the {second} need {hours[second] / DAY:,.1f})"
    )


def _stage_line(row: StagePlan) -> str:
    figures = (row.hours, row.cpu_hours, row.gpu_hours, row.disk_gb, row.wire_gb)
    texts = [figure.text() if figure.value else "-" for figure in figures]
    widths = (22, 24, 22, 24, 24)
    columns = "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))
    return f"{row.stage:<10}{columns}  {'pilot' if row.measured else 'default'}"
