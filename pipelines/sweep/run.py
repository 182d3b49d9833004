"""Execution of a sweep: data, then trainings, then videos and scores of every row and seed, each a unit of work.

A killed sweep resumes: finished units are skipped, and an interrupted one continues at its own unfinished step.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.executors.stage import Stage, no_effect
from common.ledger.store import Ledger, Outcome
from common.process.locks import hold_run
from common.recipe import dump_recipe
from common.runs import RunFolder, atomic_write, fingerprint, plain, save_provenance, temporary_beside
from omniavatar.config import GENERATION_ROLES, Request
from omniavatar.video.inputs import read_request
from pipelines.config import METHOD_ROLES
from pipelines.dag import STEPS, Context, Step, run_steps
from pipelines.drawn import draw_long_input
from pipelines.generate.animate import animate
from pipelines.roles import require
from pipelines.sweep.settings import DATA_SECTIONS, Cell, Places, SweepConfig, cell_of, cells

logger = logging.getLogger(__name__)

_BY_NAME = {step.name: step for step in STEPS}
DATA_STEPS = (_BY_NAME["curate"], _BY_NAME["latents"])
DATA_STEP_ROLES = tuple({role for step in DATA_STEPS for role in step.roles})
COMMAND = "omniavatar sweep"
Work = Callable[[Mapping[str, Any]], Outcome]
# A new version makes the units of that kind again. Rows 2: long videos are judged against their own audio.
VERSIONS = {"bases": "1", "trainings": "1", "rows": "2"}


def run_sweep(config: SweepConfig, out: Path, executor: ExecutorConfig) -> list[Outcome]:
    """Make what is missing of every row and seed below `out`; the outcomes of the units that failed.

    Trainings run `executor.workers` at a time, so do rows. A row whose training failed is left out.
    Raises what the settings and the data steps raise.
    """
    places = Places(out.resolve())
    everything = cells(config, places)
    for key, cell in {cell.data: cell for cell in everything}.items():
        _make_data(places.data(key), cell, executor)
    trained = {cell.training: cell for cell in reversed(everything)}
    judged = [cell for cell in everything if not cell.recipe.train.model.plain]
    logger.info("%s: %d trainings, %d rows with their seeds", config.name, len(trained), len(judged))
    failed: list[Outcome] = []
    for is_base in (True, False):  # a base before the adapters that are trained on it
        wave = [cell for cell in trained.values() if cell.recipe.train.model.plain == is_base]
        failed += _do("bases" if is_base else "trainings", config, places, wave, executor)
    ready = [cell for cell in judged if _result("trainings", places, cell).exists()]
    return failed + _do("rows", config, places, ready, executor)


def _make_data(folder: Path, cell: Cell, executor: ExecutorConfig) -> None:
    recipe = replace(cell.recipe, executor=executor)
    with hold_run(folder, COMMAND):
        run_steps(Context(recipe, RunFolder(folder), recipe.model_paths(DATA_STEP_ROLES)), DATA_STEPS)


def _do(
    kind: str, config: SweepConfig, places: Places, todo: Sequence[Cell], executor: ExecutorConfig
) -> list[Outcome]:
    """Run one kind of work on cells and return the outcomes that failed. The ledger counts attempts; the steps within a
    unit skip what is done."""
    stage = CellStage(kind, config, places)
    outcomes = run_stage(stage, [_unit(cell) for cell in todo], Ledger(places.out / "ledger"), executor)
    return [outcome for outcome in outcomes if outcome.state != "kept"]


@dataclass(frozen=True)
class CellStage(Stage[dict[str, Any]]):
    """Over cells of a sweep: `kind` "rows" makes and judges the videos of a cell, "trainings" and "bases" train."""

    kind: str = no_effect()
    config: SweepConfig = no_effect()
    places: Places = no_effect()

    @property
    def name(self) -> str:  # type: ignore[override]
        """One stage per kind of work."""
        return f"sweep_{self.kind}"

    @property
    def version(self) -> str:  # type: ignore[override]
        """Raised when what an older version left must be done again."""
        return VERSIONS[self.kind]

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Do one row and seed."""
        work, cell = (judge_cell if self.kind == "rows" else train_cell), self._cell(row)
        with hold_run(_folder(self.kind, self.places, cell), COMMAND):
            work(self.config, self.places, cell)
        return Outcome(row["unit"], "kept")

    def product_exists(self, row: dict[str, Any], outcome: Outcome) -> bool:
        """Whether the result of the cell is still there."""
        return _result(self.kind, self.places, self._cell(row)).exists()

    def _cell(self, row: dict[str, Any]) -> Cell:
        return cell_of(self.config, row["row"], row["seed"], self.places)


def _unit(cell: Cell) -> dict[str, Any]:
    named = {"unit": cell.unit, "row": cell.row, "seed": cell.seed, "long": cell.long}
    return named | {"data": cell.data, "training": cell.training, "recipe": fingerprint(plain(cell.recipe))}


def train_cell(config: SweepConfig, places: Places, cell: Cell) -> None:
    """Train the model that a row and seed uses."""
    run = RunFolder(places.training(cell.training))
    link(run.root / "shards", places.data(cell.data) / "shards")
    run_steps(_context(cell, run), (_trained(cell),))


def judge_cell(config: SweepConfig, places: Places, cell: Cell) -> None:
    """Videos and scores of a row and seed, as an ordinary run folder whose inputs are links to what is shared."""
    run = RunFolder(places.row(cell.row, cell.seed))
    link(run.root / "checkpoints", places.training(cell.training) / "checkpoints")
    places.features.mkdir(exist_ok=True)
    link(run.cache / "features", places.features)
    linking = partial(_link_data, places, cell)
    inputs = replace(DATA_STEPS[-1], name="inputs", sections=DATA_SECTIONS, work=linking, inputs="", whole="")
    videos = _BY_NAME["generate"]
    if cell.long:
        link(run.root / "inputs", _drawn_inputs(config, places, cell.long))
        name = f"long_videos_{config.long_clips}x{cell.long:g}s"
        videos = replace(videos, name=name, work=partial(long_videos, config.long_clips))
    run_steps(_context(cell, run, {"adapter": run.checkpoints / "adapter"}), (inputs, videos, _BY_NAME["eval"]))


def _link_data(places: Places, cell: Cell, context: Context) -> None:
    for name in ("clips", "clips.parquet", "shards"):
        link(context.run.root / name, places.data(cell.data) / name)


def long_videos(count: int, context: Context) -> Mapping[str, Any]:
    """`count` long videos of drawn faces and voices, and the manifest of them: nothing real to compare with."""
    run, rows = context.run, []
    models = require(context.models, GENERATION_ROLES)
    for number in range(count):
        image, audio = (f"inputs/{number}/{name}" for name in ("portrait.png", "voice.wav"))
        prompt = (run.root / "inputs" / f"{number}" / "prompt.txt").read_text("utf-8")
        video = f"videos/adapter/long-{number}.mp4"
        request = Request(run.root / image, run.root / audio, prompt)
        weights = {**context.models, **models}
        animate(
            request, read_request(request), context.recipe.generate, weights, run.root / video, run.cache / "chunks"
        )
        rows.append(
            # Judged against its own audio: with the preset `official` the voice begins 0.3 s into the video.
            {"method": "adapter", "clip_id": f"long-{number}", "video": video, "reference": "", "audio": video}
            | {"image": image, "seed": context.recipe.generate.seed, "role": METHOD_ROLES["adapter"]}
        )
    with atomic_write(run.videos / "manifest.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
    return {"adapter": count}


def link(at: Path, target: Path) -> None:
    """A relative link, so that the whole sweep can be moved."""
    where = Path(os.path.relpath(target, at.parent))
    if at.is_symlink() and at.readlink() == where:
        return
    at.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(at)
    temporary.symlink_to(where)
    os.replace(temporary, at)


def _drawn_inputs(config: SweepConfig, places: Places, seconds: float) -> Path:
    folder = places.inputs / f"{seconds:g}s"
    for number in range(config.long_clips):
        done = folder / f"{number}" / "prompt.txt"
        if not done.exists():
            request = draw_long_input(done.parent, number, seconds)
            with atomic_write(done) as temporary:
                temporary.write_text(request.prompt, "utf-8")
    return folder


def _context(cell: Cell, run: RunFolder, models: Mapping[str, Path] | None = None) -> Context:
    """What the steps of one row and seed work on; its recipe and versions are kept in its folder."""
    paths: dict[str, Path | None] = {**cell.recipe.model_paths(), **(models or {})}
    save_provenance(run, dump_recipe(cell.recipe), {role: path for role, path in paths.items() if path})
    return Context(cell.recipe, run, paths)


def _trained(cell: Cell) -> Step:
    step = _BY_NAME["train"]
    return replace(step, output="checkpoints/base") if cell.recipe.train.model.plain else step


def _folder(kind: str, places: Places, cell: Cell) -> Path:
    return places.row(cell.row, cell.seed) if kind == "rows" else places.training(cell.training)


def _result(kind: str, places: Places, cell: Cell) -> Path:
    result = "report/metrics.parquet" if kind == "rows" else _trained(cell).output
    return _folder(kind, places, cell) / result
