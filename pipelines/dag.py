"""DAG of a recipe: curate -> latents -> train -> generate -> eval; the second system's is in `pipelines.audioavatar`.

A step is done when the key written at its end equals what its recipe sections, model files and upstream steps give now,
its inputs are what they were when it began, its products are there and no unit of its work is left to be run again; a
done step is not done again. What happens inside a killed step is the step's own affair: each goes on where it was.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from common.errors import DamagedFileError, MissingFileError, UserError
from common.executors.retry import Unsettled, collect_unsettled
from common.hashes import HASHES, remembered_hash
from common.runs import RunFolder, fingerprint, plain, read_json, write_json
from curation.config import ROLES as CURATION_ROLES
from eval.config import ROLES as EVAL_ROLES
from omniavatar.config import ENCODER_ROLES, GENERATION_ROLES
from pipelines.config import LIKENESS_ROLES

logger = logging.getLogger(__name__)


class StepError(UserError, ValueError):
    """A step was asked for that does not exist, or whose inputs are not there yet."""


class InputsElsewhereError(MissingFileError):
    """The sources of a run are not on this machine, which goes on with what another has made of them."""


@dataclass(frozen=True)
class Context:
    """What a step works on: the resolved recipe, the run folder and the model of each role (None = no weights).

    `keep` is called whenever a part of the work is whole on the disk, to copy it to where it is safe.
    """

    recipe: Any
    run: RunFolder
    models: Mapping[str, Path | None]
    keep: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Step:
    """One stage of the flow. `sections` (dotted names) and `roles` name what of the recipe and of the models its result
    depends on; with other models of the roles in `uses` a finished step stays finished.

    `inputs` gives a value that changes with what the step reads beyond them (see `pipelines.inputs`), `whole` says
    whether what it made is still there. With the section `draws` in the recipe the step makes its inputs itself.
    """

    name: str
    sections: tuple[str, ...]
    roles: tuple[str, ...]
    output: str  # path in the run folder that is there when the step is done
    work: Callable[[Context], Mapping[str, Any] | None] | str  # or "module:function", imported when the step runs
    uses: tuple[str, ...] = ()
    inputs: Callable[[Context], Any] | str = ""
    whole: Callable[[Context], bool] | str = ""
    draws: str = ""


# Named, not imported: reading a recipe or skipping a finished step should not wait for the engines.
STEPS = (
    Step(
        "curate",
        ("small_world", "drawn", "sources", "curation"),
        tuple(CURATION_ROLES),
        "clips.parquet",
        "pipelines.steps:curate",
        inputs="pipelines.inputs:sources",
        whole="pipelines.inputs:cut_clips_are_there",
        draws="small_world",
    ),
    Step(
        "latents",
        ("latents",),
        ENCODER_ROLES,
        "shards/index.parquet",
        "pipelines.steps:latents",
        inputs="pipelines.inputs:kept_clips",
        whole="pipelines.inputs:shards_are_whole",
    ),
    Step(
        "train",
        ("train", "ranks"),
        ("transformer", "adapter"),
        "checkpoints/adapter",
        "pipelines.steps:train",
        inputs="pipelines.inputs:shards",
        whole="pipelines.inputs:training_is_whole",
    ),
    Step(
        "generate",
        ("generate", "videos"),
        GENERATION_ROLES,
        "videos/manifest.parquet",
        "pipelines.steps:generate",
        LIKENESS_ROLES,
        inputs="pipelines.inputs:requests",
        whole="pipelines.inputs:videos_are_there",
    ),
    Step(
        "eval",
        ("eval",),
        tuple(EVAL_ROLES),
        "report/metrics.parquet",
        "pipelines.steps:judge",
        inputs="pipelines.inputs:videos",
        whole="pipelines.inputs:metrics_are_there",
    ),
)


def used_roles(steps: Sequence[Step], first: str = "", last: str = "") -> set[str]:
    """The model roles of the steps from `first` to `last` (default: all). Raises StepError for an unknown name."""
    start, stop = _place(steps, first or steps[0].name), _place(steps, last or steps[-1].name)
    return {role for step in steps[start : stop + 1] for role in (*step.roles, *step.uses)}


def run_steps(context: Context, steps: Sequence[Step], first: str = "", last: str = "", force: bool = False) -> None:
    """Run the steps from `first` to `last` (default: all); `force` runs done steps again.

    Raises StepError for an unknown name, or when a step before `first` is not done.
    """
    start, stop = _place(steps, first or steps[0].name), _place(steps, last or steps[-1].name)
    key = ""
    for number, step in enumerate(steps[: stop + 1]):
        key = _key(context, step, key) if number >= start else _earlier_key(context, step, key)
        if number < start and not _has_result(context, step, key):
            raise StepError(
                f"{context.run.root} has no finished step '{step.name}' for this recipe, which '{first}' builds on; "
                f"run it first: omniavatar run --from {step.name}"
            )
        try:
            reason = "" if force and number >= start else _reason_to_run(context, step, key)
        except DamagedFileError as error:
            if number >= start:
                raise
            logger.warning("%s: %s", step.name, error)  # the step that needs the file ends with it
            reason = ""
        if number < start and reason:
            logger.warning("%s: %s; `omniavatar %s` would take that in", step.name, reason, step.name)
        elif number >= start and (force or reason):
            logger.info("%s: start%s", step.name, f" ({reason})" if reason else "")
            _run(context, step, key)
        elif number >= start:
            logger.info("%s: done already", step.name)


def step_seconds(run: RunFolder) -> dict[str, float]:
    """Seconds each finished step took, summed over interrupted tries."""
    return {name: result["seconds"] for name, result in step_results(run).items()}


def step_results(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Seconds and figures of each finished step of a run, whichever command finished it."""
    marks = sorted(path for path in _marks(run).glob("*.json") if not path.name.startswith("."))
    read = {path.stem: read_json(path, "seconds") for path in marks}
    return {name: {"seconds": mark["seconds"], "figures": mark.get("figures", {})} for name, mark in read.items()}


def _place(steps: Sequence[Step], name: str) -> int:
    names = [step.name for step in steps]
    if name not in names:
        raise StepError(f"There is no step '{name}'; the steps are {', '.join(names)}.")
    return names.index(name)


def _run(context: Context, step: Step, key: str) -> None:
    started = time.monotonic()
    mark, tries = _mark(context.run, step), _tries(context.run, step)
    spent = read_json(tries, "seconds")["seconds"] if tries.exists() else 0.0
    write_json(tries, {"seconds": spent})  # until it ends, what an earlier end recorded does not hold
    try:
        # Before the work: what arrives during it is for the next run.
        draws = bool(step.draws and getattr(context.recipe, step.draws) is not None)
        inputs = "" if draws else _inputs(context, step)
        with collect_unsettled() as unsettled:
            figures = _function(step.work)(context)
        inputs = _inputs(context, step) if draws else inputs
    finally:
        seconds = round(spent + time.monotonic() - started, 1)
        write_json(tries, {"seconds": seconds})
    state = {"key": key, "inputs": inputs, "unsettled": [asdict(stage) for stage in unsettled if stage.units]}
    write_json(mark, state | {"seconds": seconds, "figures": plain(dict(figures or {}))})
    tries.unlink()
    context.keep()
    logger.info("%s: done in %.0f s", step.name, seconds)


def _function(named: Callable[[Context], Any] | str) -> Callable[[Context], Any]:
    if callable(named):
        return named
    module, _, name = named.partition(":")
    function: Callable[[Context], Any] = getattr(import_module(module), name)
    return function


def _inputs(context: Context, step: Step) -> str:
    return fingerprint(_function(step.inputs)(context)) if step.inputs else ""


def _has_result(context: Context, step: Step, key: str) -> bool:
    mark = _mark(context.run, step)
    return mark.exists() and read_json(mark, "key")["key"] == key and (Path(context.run.root) / step.output).exists()


def _reason_to_run(context: Context, step: Step, key: str) -> str:
    """Why a step is not done, in a few words; "" for one that is."""
    mark = _mark(context.run, step)
    if _tries(context.run, step).exists():
        return "it was begun and not finished"
    if not mark.exists():
        return "not done yet"
    if not _has_result(context, step, key):
        return "its settings, weights or an earlier step changed, or its result is gone"
    recorded = read_json(mark)
    if step.whole and not _function(step.whole)(context):
        return "a part of its result is gone"
    again = [
        stage
        for entry in recorded.get("unsettled", ())
        if (stage := Unsettled(**entry)).may_run(context.recipe.executor)
    ]
    if again:
        return f"{sum(stage.units for stage in again)} units of {again[0].stage} are pending or may be tried again"
    try:
        changed = recorded.get("inputs") != _inputs(context, step)
    except InputsElsewhereError as error:
        logger.warning("%s: %s", step.name, error)
        return ""
    except UserError as error:  # as the step itself will say when it runs
        return f"its inputs cannot be read: {error}"
    return "its inputs changed" if changed else ""


def _key(context: Context, step: Step, upstream: str) -> str:
    sections = {name: plain(attrgetter(name)(context.recipe)) for name in step.sections}
    models = {role: _hash(context, path) for role in step.roles if (path := context.models.get(role))}
    return fingerprint([step.name, sections, models, upstream])


def _earlier_key(context: Context, step: Step, upstream: str) -> str:
    """The key of a step that is to be done already. Where a model of it is not on this machine nothing can be compared,
    and the key it was done with holds: curation's judges need not follow the shards to where they are trained on."""
    absent = [role for role in step.roles if (path := context.models.get(role)) and not path.exists()]
    if not absent:
        return _key(context, step, upstream)
    mark = _mark(context.run, step)
    if mark.exists():
        logger.info("%s: done with weights that are not here (%s), not compared", step.name, ", ".join(absent))
    return str(read_json(mark, "key")["key"]) if mark.exists() else ""


def _hash(context: Context, path: Path) -> str:
    return remembered_hash(path, context.run.cache / HASHES)


def _marks(run: RunFolder) -> Path:
    return run.logs / "steps"


def _mark(run: RunFolder, step: Step) -> Path:
    return _marks(run) / f"{step.name}.json"


def _tries(run: RunFolder, step: Step) -> Path:
    return _marks(run) / f"{step.name}.unfinished"
