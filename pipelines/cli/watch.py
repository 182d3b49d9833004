"""Commands that follow a training: sample videos of its adapters, plots of its log."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from common.errors import InputError
from common.progress import setup_logging
from pipelines.cli.options import TRAIN, RecipeOption, RunOption, SetOption, VerboseOption
from pipelines.cli.output import show

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
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    sample_exports(chosen.samples, chosen.generate, models, folder, stop=lambda: once or ended.is_set())
    show(folder.report / "training.png")


@app.command(rich_help_panel=TRAIN)
def curves(
    run: Annotated[Path, typer.Option("--run", help="run folder of the training")],
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="name=folder of a run to compare with; may be repeated")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="PNG file to write (default: RUN/report/training.png)")] = None,
) -> None:
    """Plot a training: losses, audio gap, lip sync of its samples."""
    from common.runs import RunFolder
    from pipelines.training_curves import draw_training_curves

    pairs = [pair.partition("=") for pair in beside or ()]
    wrong = [name for name, _, folder in pairs if not Path(folder).is_dir() or not folder]
    if wrong:
        raise InputError(f"--beside {wrong[0]} names no run folder; expected name=FOLDER.")
    target = out or RunFolder(run).report / "training.png"
    draw_training_curves(RunFolder(run), target, {name: RunFolder(Path(folder)) for name, _, folder in pairs})
    show(target)
