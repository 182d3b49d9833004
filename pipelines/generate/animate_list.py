"""Generation of a list of samples as units of work: a video each, or a row with the reason; resumable."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Ledger, Outcome
from common.media.open import MediaError
from common.runs import atomic_write, plain
from omniavatar.config import GenerateConfig, Request, decisive
from omniavatar.models import AvatarModels
from omniavatar.video.inputs import read_request
from pipelines.generate.animate import animate, load_avatar
from pipelines.generate.sample_list import Sample
from pipelines.generate.targets import COLUMNS, RESULTS
from pipelines.models.lock import model_hash


def animate_list(
    samples: Sequence[Sample],
    sampling: GenerateConfig,
    models: Mapping[str, Path | None],
    out: Path,
    executor: ExecutorConfig,
    preset: str = "",
    measure: bool = False,
) -> list[Outcome]:
    """Write `<out>/<name>.mp4` for every sample and `<out>/results.csv`; finished ones are skipped, unless an input
    changed. `measure`: see `animate`.

    Whether `out` can be written is for `check_targets` to tell, before. Returns the outcomes in order: kept, rejected
    (its input or its output cannot be used) or failed. Raises what `run_stage` raises.
    """
    weights = tuple(Weights(role, path, model_hash(path)) for role, path in models.items() if path is not None)
    stage = AnimateStage(sampling, preset, measure, weights, out)
    if executor.kind == "process" and not executor.workers:
        executor = replace(executor, workers=1)  # each worker holds all networks
    units = [_unit(sample) for sample in samples]
    outcomes = run_stage(stage, units, Ledger(out / "ledger"), executor)
    with atomic_write(out / RESULTS) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for outcome in outcomes:
            video = f"{outcome.unit}.mp4" if outcome.state == "kept" else ""
            table.writerow((outcome.unit, outcome.state, video, outcome.message))
    return outcomes


@dataclass(frozen=True)
class AnimateStage(Stage[dict[str, Any]]):
    """Over samples: writes `<out>/<name>.mp4`; rejected when a sample's inputs cannot be used."""

    name = "animate"
    pool = "gpu"
    version = "1"
    sampling: GenerateConfig
    preset: str
    measure: bool
    weights: tuple[Weights, ...]
    out: Path = no_effect()
    load_once: Callable[[], AvatarModels] = loaded()

    @property
    def params(self) -> dict[str, Any]:
        """The settings, those of loading as far as they decide."""
        params = super().params
        return params | {"sampling": decisive(params["sampling"])}

    def load(self) -> None:
        """Weights are loaded for the first sample with usable inputs."""
        self.hold(load_once=cache(partial(load_avatar, self._paths(), self.sampling)))

    def _paths(self) -> dict[str, Path | None]:
        return {"adapter": None} | {weights.role: weights.path for weights in self.weights}

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Generate one video."""
        if row["error"]:
            return Outcome(row["unit"], "rejected", "bad_line", row["error"])
        fields = row["request"]
        image, audio = (Path(fields[kind]) if fields[kind] else None for kind in ("image", "audio"))
        request = Request(image, audio, fields["prompt"], fields["seconds"])
        sampling = self.sampling if row["seed"] is None else replace(self.sampling, seed=row["seed"])
        target, models = self.out / f"{row['unit']}.mp4", self._paths()
        try:
            inputs = read_request(request)
            animate(
                request, inputs, sampling, models, target, self.out / "cache", self.preset, self.load_once, self.measure
            )
        except (InputError, MediaError, FileNotFoundError) as error:
            return Outcome(row["unit"], "rejected", "bad_input", str(error))
        return Outcome(row["unit"], "kept")

    def products(self, row: dict[str, Any], outcome: Outcome) -> Mapping[Path, int | None]:
        """The video."""
        return {self.out / f"{row['unit']}.mp4": None}


def _unit(sample: Sample) -> dict[str, Any]:
    """One row for the executor. Size and modification time of the inputs are in it, so that a sample whose file was
    replaced is tried again."""
    files = [path for path in (sample.request.image, sample.request.audio) if path is not None and path.is_file()]
    marks = [[path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    request = plain(asdict(sample.request))
    return {"unit": sample.name, "request": request, "seed": sample.seed, "error": sample.error, "marks": marks}
