"""The command that samples a training while it runs."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from common.errors import InputError
from common.progress import setup_logging

app = typer.Typer()


@app.command()
def watch(
    recipe: Annotated[str, typer.Option("--recipe", help="the recipe that trains, by name or path")] = "demo",
    run: Annotated[Path | None, typer.Option("--run", help="run folder; default runs/<recipe name>")] = None,
    once: Annotated[bool, typer.Option("--once", help="sample what is there and end")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value on top of the recipe")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="more log lines, and tracebacks")] = False,
) -> None:
    """Sample videos and their lip-sync scores of every adapter a training exports; Ctrl-C ends it."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from omniavatar.config import BASE_ROLES
    from pipelines.generate.watch import watch as sample_exports
    from pipelines.recipe import read_recipe
    from pipelines.steps import require

    chosen = read_recipe(recipe, tuple(settings or ()))
    models = chosen.model_paths()
    require(models, BASE_ROLES)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    folder = RunFolder(run or Path("runs") / chosen.name)
    sample_exports(chosen.samples, chosen.generate, models, folder, stop=lambda: once or ended.is_set())
    print(folder.report / "training.png")


@app.command()
def curves(
    run: Annotated[Path, typer.Option("--run", help="run folder of the training")],
    beside: Annotated[list[str] | None, typer.Option("--beside", help="name=folder of another run to compare")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG to write; default RUN/report/training.png")] = None,
) -> None:
    """The curves of a training as one picture: losses, audio gap, lip-sync of its samples."""
    from common.runs import RunFolder
    from pipelines.training_curves import draw_training_curves

    pairs = [pair.partition("=") for pair in beside or ()]
    wrong = [name for name, _, folder in pairs if not Path(folder).is_dir() or not folder]
    if wrong:
        raise InputError(f"--beside {wrong[0]} names no run folder; expected name=FOLDER.")
    target = out or RunFolder(run).report / "training.png"
    draw_training_curves(RunFolder(run), target, {name: RunFolder(Path(folder)) for name, _, folder in pairs})
    print(target)
