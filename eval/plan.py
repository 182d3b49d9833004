"""What an evaluation will do: clips x extractors, what is in the cache, what lacks weights, how long it takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.ledger.store import ledger_rows
from common.runs import RunFolder, hash_path
from eval.config import ROLES, EvalConfig
from eval.features.extract import ExtractJob, is_lost
from eval.features.extractors import EXTRACTORS
from eval.job import units_of
from eval.manifest import FLOOR, read_manifest
from eval.metrics.clip_metrics import METRICS


@dataclass(frozen=True)
class Line:
    """One extractor: `cached` of the `videos` it looks at are in the cache; `missing` are roles without weights."""

    extractor: str
    metrics: tuple[str, ...]
    videos: int
    cached: int
    missing: tuple[str, ...]

    @property
    def left(self) -> int:
        """Videos that are still to be looked at."""
        return 0 if self.missing else self.videos - self.cached


@dataclass(frozen=True)
class Plan:
    """`methods`: name -> clips. `seconds`: of the videos left, at the pace of those that this run has judged so far
    on one core; None before the first."""

    protocol: str
    methods: Mapping[str, int]
    lines: tuple[Line, ...]
    videos_left: int
    seconds: float | None


def plan_evaluation(config: EvalConfig, models: Mapping[str, Path | None], run: RunFolder) -> Plan:
    """What `evaluate` would do now. Files are hashed, no network is loaded. Raises ManifestError."""
    rows = read_manifest(run)
    judges = {role: path for role in ROLES if (path := models.get(role))}
    hashes = {role: hash_path(path) for role, path in judges.items()}
    job = ExtractJob(Path(run.root), run.cache / "features", config.features, judges, hashes)
    units, lines, left = units_of(run, rows), [], set()
    for extractor in (each for each in EXTRACTORS if each.wanted(config.features)):
        mine = [u for u in units if extractor.name in u["extractors"] and all(u[kind] for kind in extractor.reads)]
        keys = [f"{extractor.name}/{extractor.key(config.features, hashes, unit)}.npz" for unit in mine]
        lost = [unit["unit"] for unit, key in zip(mine, keys, strict=True) if is_lost(job.cache / key)]
        missing = tuple(extractor.missing(hashes))
        left |= set() if missing else set(lost)
        metrics = tuple(name for name, metric in METRICS.items() if metric.extractor == extractor.name)
        lines.append(Line(extractor.name, metrics, len(mine), len(mine) - len(lost), missing))
    counted = [row["method"] for row in rows]
    methods = {name: counted.count(name) for name in dict.fromkeys(counted) if name != FLOOR}
    return Plan(config.features.protocol, methods, tuple(lines), len(left), _seconds(run, len(left)))


def plan_lines(plan: Plan) -> list[str]:
    """The plan in words, a line for each extractor."""
    clips = ", ".join(f"{name} {count}" for name, count in plan.methods.items())
    lines = [f"protocol {plan.protocol}; clips: {clips}"]
    for line in plan.lines:
        state = f"no weights: {', '.join(line.missing)}" if line.missing else f"{line.cached} cached, {line.left} to do"
        lines.append(f"{line.extractor:9} {line.videos:5} videos, {state}; {', '.join(line.metrics)}")
    pace = "no video judged yet to tell how long" if plan.seconds is None else f"about {plan.seconds:.0f} s of one core"
    return [*lines, f"{plan.videos_left} videos left: {pace}" if plan.videos_left else "nothing left to look at"]


def _seconds(run: RunFolder, left: int) -> float | None:
    spent = [seconds for seconds in ledger_rows(run.ledger, "eval")["seconds"].to_pylist() if seconds]
    return left * sum(spent) / len(spent) if spent else None
