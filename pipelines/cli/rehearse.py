"""The command of a rehearsal."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from common.progress import setup_logging
from pipelines.cli.options import MODELS, RecipeOption, SetOption, VerboseOption, not_a_file, within
from pipelines.cli.output import report, show

STEPS = ("generate", "latents", "train")

app = typer.Typer()


def _steps(text: str) -> str:
    unknown = [name for name in text.split(",") if name not in STEPS]
    if unknown:
        raise typer.BadParameter(f"'{unknown[0]}' was given, expected some of {', '.join(STEPS)} with commas between.")
    return text


@app.command(rich_help_panel=MODELS)
def rehearse(
    recipe: RecipeOption = "omniavatar-1.3b",
    steps: Annotated[str, typer.Option(help="what to rehearse", callback=_steps)] = ",".join(STEPS),
    to: Annotated[
        Path | None,
        typer.Option(help="folder of weights and results (default: runs/rehearsal-<recipe>)", callback=not_a_file),
    ] = None,
    minutes: Annotated[
        float, typer.Option(help="time limit; what does not fit is left out", callback=within(0, open=True))
    ] = 60.0,
    layers: Annotated[
        int, typer.Option(help="blocks of transformer and text encoder; 0: as many as fit", callback=within(0))
    ] = 0,
    seconds: Annotated[
        float, typer.Option(help="length of the video whose time is forecast", callback=within(0, open=True))
    ] = 60.0,
    keep: Annotated[bool, typer.Option("--keep", help="leave the random weights and all results there")] = False,
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Every command of a recipe on random weights of the published shapes: memory, time and disk before a download."""
    setup_logging(verbose)
    from common.outputs import check_output_folder
    from common.process.locks import hold_run
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    folder = to or Path("runs") / f"rehearsal-{chosen.name}"
    check_output_folder(folder)
    from common.runs import write_json
    from pipelines.rehearse.rehearse import RESULTS, Options
    from pipelines.rehearse.rehearse import rehearse as run_rehearsal
    from pipelines.rehearse.report import outlook, outlook_lines, table_lines

    with hold_run(folder, "omniavatar rehearse"):
        options = Options(tuple(steps.split(",")), folder, minutes, keep, layers)
        content = run_rehearsal(chosen, options, partial(show, flush=True))
        content["outlook"] = outlook(chosen, content, seconds)
        write_json(folder / RESULTS, content)
    report(results=folder / RESULTS, **content)
    show("\n".join([*table_lines(content), *outlook_lines(chosen, content, seconds), str(folder / RESULTS)]))
    if any(row["state"] != "passed" for row in content["stages"].values()):
        raise typer.Exit(1)
