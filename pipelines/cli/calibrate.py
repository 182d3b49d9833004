"""The command `calibrate`: what leaving out steps needs to know of a model, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from common.progress import setup_logging

app = typer.Typer()


@app.command()
def calibrate(
    samples: Annotated[
        Path | None, typer.Option("--list", help="prompt@@image@@audio lines, .csv or .jsonl; default: test clips")
    ] = None,
    clips: Annotated[int, typer.Option(help="without --list: so many test clips of the run")] = 4,
    thresholds: Annotated[str, typer.Option(help="cache_threshold values to try")] = "0.05,0.1,0.15,0.2,0.3,0.5",
    recipe: Annotated[str, typer.Option("--recipe", help="name of a shipped recipe, or path to a YAML file")] = "demo",
    run: Annotated[Path | None, typer.Option("--run", help="run folder; default runs/<recipe name>")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="section.key=value on top of all")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="more log lines, and tracebacks")] = False,
) -> None:
    """Fit `generate.cache_polynomial` for a model, and measure how like the videos stay at each `cache_threshold`."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from omniavatar.config import GENERATION_ROLES
    from pipelines.generate.animate import load_avatar
    from pipelines.generate.calibrate import calibrate, clip_requests, listed_requests
    from pipelines.recipe import read_recipe
    from pipelines.steps import require

    try:
        tried = [float(part) for part in thresholds.split(",")]
    except ValueError as error:
        raise ValueError(f"--thresholds is {thresholds!r}; expected numbers with commas between.") from error
    chosen = read_recipe(recipe, tuple(settings or ()))
    folder = RunFolder(run or Path("runs") / chosen.name)
    requests = listed_requests(samples) if samples else clip_requests(folder, clips, chosen.videos.frames)
    weights = require(chosen.model_paths(GENERATION_ROLES), GENERATION_ROLES)
    models = load_avatar(weights, chosen.generate.load)
    found = calibrate(models, requests, chosen.generate, tried)
    if models.rank == 0:
        print("\n".join(found.lines()))
