"""Commands about curated data: forecast, yield of thresholds, test splits, versions of the data set, takedowns."""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.progress import setup_logging
from pipelines.cli.options import CURATE, RUN, ExistingRunOption, RecipeOption, SetOption, VerboseOption
from pipelines.cli.output import show

app = typer.Typer()

PresetOption = Annotated[
    str, typer.Option("--preset", help="named thresholds instead of the recipe's: omniavatar, latentsync, strict")
]


def _thresholds(recipe: str, preset: str, settings: list[str] | None) -> Any:
    """The SelectConfig of a preset or a recipe."""
    from curation.decide.presets import read_preset
    from pipelines.recipe import read_recipe

    if not preset:
        return read_recipe(recipe, tuple(settings or ())).curation.select
    return read_preset(preset, tuple(setting.removeprefix("curation.select.") for setting in settings or ()))


@app.command(rich_help_panel=CURATE)
def plan(
    recipe: RecipeOption = "folder",
    pilot: Annotated[
        Path | None, typer.Option(help="run folder of a sample of these sources, to scale up from")
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPU cores to plan for")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to plan for")] = 0,
    run: Annotated[
        Path | None, typer.Option("--run", help="run folder to store the forecast in, for its report")
    ] = None,
    settings: SetOption = None,
) -> None:
    """Forecast of curation: hours of CPU and GPU, days, bytes, and the bottleneck. Downloads nothing."""
    from common.runs import RunFolder
    from curation.reporting.pilot import read_pilot
    from curation.reporting.plan import Machines, listed, make_plan
    from curation.reporting.report import save_plan
    from curation.sources.listing import list_sources
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    what = listed(list_sources(chosen.sources))
    measured = read_pilot(pilot) if pilot else None
    forecast = make_plan(what, chosen.curation.download, Machines(cpus, gpus), measured)
    if run:
        save_plan(RunFolder(run), forecast)
    show("\n".join(forecast.lines()))


@app.command(rich_help_panel=RUN)
def status(run: ExistingRunOption = Path("runs/demo")) -> None:
    """Progress of a run, stage by stage: during the run from another terminal, or after a crash."""
    from common.executors.status import status_lines

    show("\n".join(status_lines(run)))


@app.command("yield", rich_help_panel=CURATE)
def show_yield(
    run: ExistingRunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    preset: PresetOption = "",
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="threshold=2,3,4 or threshold=first:last:step; may be repeated")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG or SVG file to draw the grid into")] = None,
    settings: SetOption = None,
) -> None:
    """Clips and hours that other thresholds would keep, and what each rule rejects, from the stored scores."""
    from curation.decide.yields import GRID, draw_yield, hours_lines, parse_axis, yield_lines, yield_table

    select = _thresholds(recipe, preset, settings)
    table = yield_table(run, select, dict(map(parse_axis, grid)) if grid else GRID)
    show("\n".join([*yield_lines(table), "", *hours_lines(run, select)]))
    if plot:
        draw_yield(table, plot)
        show(plot)


@app.command(rich_help_panel=CURATE)
def reselect(
    run: ExistingRunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    preset: PresetOption = "",
    test_list: Annotated[str, typer.Option(help="test split written by `omniavatar split`")] = "",
    settings: SetOption = None,
) -> None:
    """Apply other thresholds to the stored scores and rewrite the decisions."""
    from common.runs import RunFolder
    from curation.decide.reselect import reselect as decide_again

    show("\n".join(decide_again(_thresholds(recipe, preset, settings), RunFolder(run), test_list).lines()))


@app.command(rich_help_panel=CURATE)
def split(
    run: ExistingRunOption = Path("runs/demo"),
    count: Annotated[int, typer.Option(help="test clips")] = 100,
    seed: Annotated[int, typer.Option(help="random seed of the draw")] = 0,
    by_clip: Annotated[
        bool,
        typer.Option(
            "--by-clip", help="draw clips, as the paper does, not videos: other clips of a test video stay in training"
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="list to write, for curation.test_list of a recipe")] = Path("test.tsv"),
) -> None:
    """Draw a test split by video: neither the source of a test clip nor a duplicate of it stays in training."""
    from common.clips import read_clips
    from curation.decide.split import draw_split, write_split

    write_split(out, draw_split(read_clips(run / "clips.parquet"), count, seed, "clip" if by_clip else "video"))
    show(out)


@app.command(rich_help_panel=CURATE)
def freeze(
    run: ExistingRunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    contents: Annotated[bool, typer.Option(help="also hash the decoded clips, to compare rebuilt ones with")] = True,
    verbose: VerboseOption = False,
) -> None:
    """Write the kept clips as a version: a list named by its content hash, from which others rebuild the clips."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from curation.dataset.versions import freeze as write_version
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    header = write_version(RunFolder(run), chosen.curation.rules, run / "versions", chosen.executor, contents)
    show(run / "versions" / f"{header['name']}.parquet")


@app.command(rich_help_panel=CURATE)
def diff(
    old: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`")],
    new: Annotated[Path, typer.Argument(help="list to compare with")],
) -> None:
    """Compare two versions of a data set: clips added, removed and changed, and the rules that changed."""
    from curation.dataset.versions import compare

    show("\n".join(compare(old, new).lines()))


@app.command(rich_help_panel=CURATE)
def rebuild(
    version: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`")],
    run: Annotated[Path, typer.Option("--run", help="run folder to write")] = Path("runs/rebuilt"),
    videos: Annotated[str, typer.Option(help="folder that holds some of the videos; the rest is downloaded")] = "",
    recipe: RecipeOption = "folder",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Rebuild the clips of a version, and list which are identical, which changed and which are unavailable."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from curation.dataset.rebuild import rebuild as make_again
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    show("\n".join(make_again(version, RunFolder(run), chosen.executor, chosen.curation.download, videos).lines()))


@app.command(rich_help_panel=CURATE)
def takedown(
    video_id: Annotated[str, typer.Argument(help="video_id of sources.parquet")],
    run: ExistingRunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove a video from a run, its latents and mirror included; later runs reject it."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from common.storage import Mirror
    from pipelines.recipe import read_recipe
    from pipelines.takedown import take_down

    chosen = read_recipe(recipe, tuple(settings or ()))
    # After `--` an id may begin with a dash.
    show("\n".join(take_down(RunFolder(run), video_id, chosen.curation.select).lines()))
    if chosen.mirror:
        mirror = Mirror(run, chosen.mirror)
        mirror.push()
        mirror.sweep()
