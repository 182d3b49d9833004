"""A list of samples as units of work: each a video, or a row that says why not; killed and run again it goes on."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage
from common.ledger.store import Ledger, Outcome
from common.media.open import MediaError
from common.runs import atomic_write, plain
from omniavatar.config import GenerateConfig, Request
from omniavatar.models import AvatarModels
from pipelines.generate.animate import animate, load_avatar
from pipelines.generate.sample_list import Sample
from pipelines.models.lock import model_hash

RESULTS = "results.csv"


def animate_list(
    samples: Sequence[Sample],
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    out: Path,
    executor: ExecutorConfig,
    preset: str = "",
    measure: bool = False,
) -> list[Outcome]:
    """Write `<out>/<name>.mp4` for every sample and `<out>/results.csv`; finished ones stay, unless an input changed.
    `measure`: see `animate`.

    Returns the outcomes in order: kept, rejected (its input cannot be used) or failed. Raises what `run_stage` raises.
    """
    weights = {role: path for role, path in models.items() if path is not None}
    hashes = {role: model_hash(path) for role, path in weights.items()}
    make = partial(
        make_worker, {role: str(path) for role, path in weights.items()}, sampling, str(out), preset, measure
    )
    params = {"sampling": plain(sampling), "preset": preset, "measure": measure}
    stage = Stage("animate", "1", params, hashes, make)
    if executor.kind == "process" and not executor.workers:
        executor = replace(executor, workers=1)  # each worker holds all networks
    units = [_unit(sample) for sample in samples]
    outcomes = run_stage(stage, units, Ledger(out / "ledger"), executor)
    lost = [n for n, end in enumerate(outcomes) if end.state == "kept" and not (out / f"{end.unit}.mp4").exists()]
    if lost:  # the ledger outlives a file that somebody deleted
        again = make()
        for number in lost:
            outcomes[number] = again(units[number])
    with atomic_write(out / RESULTS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("name", "state", "video", "message"))
        for outcome in outcomes:
            video = f"{outcome.unit}.mp4" if outcome.state == "kept" else ""
            table.writerow((outcome.unit, outcome.state, video, outcome.message))
    return outcomes


def make_worker(
    weights: Mapping[str, str], sampling: GenerateConfig, out: str, preset: str, measure: bool = False
) -> Callable[[Mapping[str, Any]], Outcome]:
    """The function that makes one sample; weights are loaded when the first sound input needs them."""
    models = {role: Path(path) for role, path in weights.items()} | ({} if "adapter" in weights else {"adapter": None})
    load = cache(partial(load_avatar, models, sampling.load))
    return partial(_make, load, models, sampling, Path(out), preset, measure)


def _make(
    load: Callable[[], AvatarModels],
    models: Mapping[str, Path | None],
    sampling: GenerateConfig,
    out: Path,
    preset: str,
    measure: bool,
    unit: Mapping[str, Any],
) -> Outcome:
    if unit["error"]:
        return Outcome(unit["unit"], "rejected", "bad_line", unit["error"])
    fields = unit["request"]
    image, audio = (Path(fields[kind]) if fields[kind] else None for kind in ("image", "audio"))
    request = Request(image, audio, fields["prompt"], fields["seconds"])
    if unit["seed"] is not None:
        sampling = replace(sampling, seed=unit["seed"])
    try:
        animate(request, sampling, models, out / f"{unit['unit']}.mp4", out / "cache", preset, load, measure)
    except (InputError, MediaError, FileNotFoundError) as error:
        return Outcome(unit["unit"], "rejected", "bad_input", str(error))
    return Outcome(unit["unit"], "kept")


def _unit(sample: Sample) -> dict[str, Any]:
    """One row for the executor. Size and time of the inputs tell a file that was mended from the one refused before."""
    files = [path for path in (sample.request.image, sample.request.audio) if path is not None and path.is_file()]
    marks = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    request = plain(asdict(sample.request))
    return {"unit": sample.name, "request": request, "seed": sample.seed, "error": sample.error, "marks": marks}
