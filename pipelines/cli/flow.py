"""Steps of a recipe from the command line, with the report and the closing summary."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cli.failures import logs_folder
from pipelines.cli.options import existing_run
from pipelines.cli.output import report as report_result
from pipelines.cli.output import show

if TYPE_CHECKING:
    from common.runs import RunFolder
    from common.storage import Mirror
    from pipelines.dag import Context, Step
    from pipelines.recipe import Recipe

logger = logging.getLogger(__name__)


def run_flow(
    name: str, run: Path | None, settings: Sequence[str] | None, first: str = "", last: str = "", force: bool = False
) -> None:
    """Run the steps `first` to `last` of a recipe and say what there is then. Errors as of the recipe and its steps."""
    # Imported here: torch and its friends take seconds that `--help` should not wait for.
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from pipelines.dag import used_roles
    from pipelines.recipe import read_recipe

    recipe = read_recipe(name, tuple(settings or ()))
    folder = RunFolder(run or Path("runs") / recipe.name)
    steps = _steps_of(recipe)
    if recipe.avatar is not None and first == last == "train":
        from pipelines.audioavatar import TRAIN_STEPS

        first, last = TRAIN_STEPS
    used_roles(steps, first, last)  # a wrong name of a step is reported before a folder is made
    if first not in ("", steps[0].name) and not recipe.mirror:  # which an earlier step is to have written to
        existing_run(folder.root)
    with hold_run(folder.root, f"omniavatar {first if first and first == last else 'run'}"):
        logs_folder.set(folder.logs)
        _run_steps(recipe, steps, folder, first, last, force)


def _steps_of(recipe: "Recipe") -> "tuple[Step, ...]":
    """The DAG of the system that a recipe trains."""
    if recipe.avatar is not None:
        from pipelines.audioavatar import AVATAR_STEPS

        return AVATAR_STEPS
    from pipelines.dag import STEPS

    return STEPS


def _run_steps(
    recipe: "Recipe", steps: "tuple[Step, ...]", folder: "RunFolder", first: str, last: str, force: bool
) -> None:
    from common.hashes import HASHES, remembered_hash
    from common.process.signals import Stopped
    from common.recipe import dump_recipe
    from common.runs import save_provenance
    from common.storage import Mirror
    from pipelines.cli.summary import closing_words
    from pipelines.dag import Context, run_steps, step_results, used_roles

    mirror = Mirror(folder.root, recipe.mirror) if recipe.mirror else None
    if mirror:
        mirror.restore()
    models = recipe.named_models()
    recipe.model_paths(used_roles(steps, first, last))  # only what these steps use has to be there
    named = {role: path for role, path in models.items() if path}
    save_provenance(folder, dump_recipe(recipe), named, lambda path: remembered_hash(path, folder.cache / HASHES))
    context = Context(recipe, folder, models, mirror.push) if mirror else Context(recipe, folder, models)
    try:
        run_steps(context, steps, first, last, force)
    except Stopped:
        if mirror:  # this machine may be about to go
            _push(mirror)
        raise
    if recipe.avatar is not None:
        from pipelines.audioavatar import closing_lines

        report_result(run=folder.root, steps=step_results(folder))
        return show("\n".join(closing_lines(folder)))
    page = folder.report / "index.html"
    if not _is_newest(page, folder):  # plots and metrics load torch and matplotlib
        page = report(context)
    report_result(run=folder.root, report=page, steps=step_results(folder))
    show("\n".join([*closing_words(folder), str(page)]))


def _push(mirror: "Mirror") -> None:
    """Push, or say why that is not possible: the mirror then stands where it stood."""
    from common.storage import StorageError

    try:
        mirror.push()
    except StorageError as error:
        logger.warning("what was done last is not in the mirror: %s", error)


def _is_newest(page: Path, run: "RunFolder") -> bool:
    """Whether no file that the report is made of, marks of done steps among them, was written after it."""
    folders = (Path(run.root), run.ledger, run.logs, run.logs / "steps", run.report, run.videos)
    files = (file for folder in folders for file in folder.glob("[!.]*") if file.is_file())
    return page.exists() and max(file.stat().st_mtime_ns for file in files) == page.stat().st_mtime_ns


def report(context: "Context") -> Path:
    """Write `report/index.html` and `report/summary.json` from what the run folder holds now."""
    from common.runs import read_json
    from eval.reporting.report import write_report
    from pipelines.dag import step_seconds

    run = context.run
    faults = read_json(run.report / "faults.json") if (run.report / "faults.json").exists() else {}
    return write_report(run, faults | {"seconds": step_seconds(run)})
