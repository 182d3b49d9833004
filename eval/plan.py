"""Dry run of an evaluation: videos per extractor, what is cached, what lacks weights, how long it will take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.ledger.store import ledger_rows
from common.runs import RunFolder, hash_path
from eval.config import ROLES, EvalConfig
from eval.features.extract import is_lost
from eval.features.extractors import EXTRACTORS
from eval.job import units_of
from eval.manifest import FLOOR, read_manifest
from eval.metrics.clip_metrics import METRICS


@dataclass(frozen=True)
class ExtractorPlan:
    """One extractor: `cached` of its `videos` are in the cache; `missing` are roles without weights."""

    extractor: str
    metrics: tuple[str, ...]
    videos: int
    cached: int
    missing: tuple[str, ...]

    @property
    def to_extract(self) -> int:
        """Videos that are still to be extracted."""
        return 0 if self.missing else self.videos - self.cached


@dataclass(frozen=True)
class EvaluationPlan:
    """`methods`: name -> clips. `seconds`: for the videos not cached yet on one core, at the mean rate of
    those judged so far; None before the first."""

    protocol: str
    methods: Mapping[str, int]
    lines: tuple[ExtractorPlan, ...]
    videos_to_extract: int
    seconds: float | None


def plan_evaluation(config: EvalConfig, models: Mapping[str, Path | None], run: RunFolder) -> EvaluationPlan:
    """What `evaluate` would do now; hashes files, loads no network. Raises ManifestError."""
    rows = read_manifest(run)
    judges = {role: path for role in ROLES if (path := models.get(role))}
    hashes = {role: hash_path(path) for role, path in judges.items()}
    cache = run.cache / "features"
    units, lines, to_extract = units_of(run, rows), [], set()
    for extractor in (each for each in EXTRACTORS if each.is_in(config.features)):
        mine = [u for u in units if extractor.name in u["extractors"] and all(u[kind] for kind in extractor.reads)]
        keys = [f"{extractor.name}/{extractor.key(config.features, hashes, unit)}.npz" for unit in mine]
        lost = [unit["unit"] for unit, key in zip(mine, keys, strict=True) if is_lost(cache / key)]
        missing = tuple(extractor.missing(hashes))
        to_extract |= set() if missing else set(lost)
        metrics = tuple(name for name, metric in METRICS.items() if metric.extractor == extractor.name)
        lines.append(ExtractorPlan(extractor.name, metrics, len(mine), len(mine) - len(lost), missing))
    counted = [row["method"] for row in rows]
    methods = {name: counted.count(name) for name in dict.fromkeys(counted) if name != FLOOR}
    seconds = _seconds(run, len(to_extract))
    return EvaluationPlan(config.features.protocol, methods, tuple(lines), len(to_extract), seconds)


def plan_lines(plan: EvaluationPlan) -> list[str]:
    """The plan as text, one line per extractor."""
    clips = ", ".join(f"{name} {count}" for name, count in plan.methods.items())
    lines = [f"protocol {plan.protocol}; clips: {clips}"]
    for line in plan.lines:
        progress = f"{line.cached} cached, {line.to_extract} to do"
        state = f"no weights: {', '.join(line.missing)}" if line.missing else progress
        lines.append(f"{line.extractor:9} {line.videos:5} videos, {state}; {', '.join(line.metrics)}")
    time = "no video judged yet to estimate the time from"
    if plan.seconds is not None:
        time = f"about {plan.seconds:.0f} s of one core"
    end = f"{plan.videos_to_extract} videos to extract: {time}" if plan.videos_to_extract else "nothing left to extract"
    return [*lines, end]


def _seconds(run: RunFolder, to_extract: int) -> float | None:
    spent = [seconds for seconds in ledger_rows(run.ledger, "eval")["seconds"].to_pylist() if seconds]
    return to_extract * sum(spent) / len(spent) if spent else None
