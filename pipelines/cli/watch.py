"""Commands that follow a training: sample videos of its adapters, plots of its log."""

from pathlib import Path
from typing import Annotated

import typer

from common.errors import MissingFileError
from common.progress import setup_logging
from pipelines.cli.options import (
    TRAIN,
    RecipeOption,
    RunOption,
    SetOption,
    VerboseOption,
    existing_run,
    not_a_folder,
    pairs,
)
from pipelines.cli.output import report, show

app = typer.Typer()


@app.command(rich_help_panel=TRAIN)
def watch(
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    once: Annotated[bool, typer.Option("--once", help="sample the adapters there are, and exit")] = False,
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Sample videos with each adapter that a training exports, and score their lip sync; stop with Ctrl-C."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from omniavatar.config import BASE_ROLES
    from pipelines.generate.watch import watch as sample_exports
    from pipelines.recipe import read_recipe
    from pipelines.roles import require

    chosen = read_recipe(recipe, tuple(settings or ()))
    folder = RunFolder(run or Path("runs") / chosen.name)
    models = chosen.model_paths((*BASE_ROLES, "sync_scorer", "face_detector"))
    require(models, BASE_ROLES)
    sample_exports(chosen.samples, chosen.generate, models, folder, stop=lambda: once)
    report(written=folder.report / "training.png")
    show(folder.report / "training.png")


@app.command(rich_help_panel=TRAIN)
def curves(
    run: Annotated[Path, typer.Option("--run", help="run folder of the training", callback=existing_run)],
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="name=folder of a run to compare with; may be repeated")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG file to write (default: RUN/report/training.png)", callback=not_a_folder)
    ] = None,
) -> None:
    """Plot a training: losses, audio gap, lip sync of its samples."""
    from common.outputs import check_output_file
    from common.runs import RunFolder
    from pipelines.training_curves import draw_training_curves

    others = {name: Path(folder) for name, folder in pairs(beside, "--beside", "NAME=FOLDER", "control=runs/control")}
    for name, folder in others.items():
        if not folder.is_dir():
            raise MissingFileError(
                f"--beside {name}: there is no run folder at {folder}; give one that a run wrote to."
            )
    target = out or RunFolder(run).report / "training.png"
    check_output_file(target, (".png",))
    draw_training_curves(RunFolder(run), target, {name: RunFolder(folder) for name, folder in others.items()})
    report(written=target)
    show(target)
