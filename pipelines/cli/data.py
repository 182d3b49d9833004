"""Commands about curated data: what other thresholds leave, test splits, versions of it, and taking a video down."""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.progress import setup_logging
from pipelines.cli.shards import app as shards_commands

app = typer.Typer()
app.add_typer(shards_commands, name="shards")

RunOption = Annotated[Path, typer.Option("--run", help="run folder")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="whose thresholds: a recipe, by name or path")]
PresetOption = Annotated[
    str, typer.Option("--preset", help="thresholds by name instead: omniavatar, latentsync, strict")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value on top of the recipe")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="more log lines, and tracebacks")]


def _thresholds(recipe: str, preset: str, settings: list[str] | None) -> Any:
    """The SelectConfig of a preset or a recipe."""
    from curation.decide.presets import read_preset
    from pipelines.recipe import read_recipe

    if not preset:
        return read_recipe(recipe, tuple(settings or ())).curation.select
    return read_preset(preset, tuple(setting.removeprefix("curation.select.") for setting in settings or ()))


@app.command()
def plan(
    recipe: Annotated[str, typer.Option("--recipe", help="whose sources, and the exits they come through")] = "folder",
    pilot: Annotated[Path | None, typer.Option(help="run of a sample of these sources, to scale up from")] = None,
    cpus: Annotated[int, typer.Option(help="cores the work is spread over")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs the work is spread over")] = 0,
    run: Annotated[Path | None, typer.Option("--run", help="keep the forecast with this run, for its report")] = None,
    settings: SetOption = None,
) -> None:
    """Hours, cores, GPUs, bytes and days that curating these sources will take, and what to add. Fetches nothing."""
    from common.runs import RunFolder
    from curation.reporting.pilot import read_pilot
    from curation.reporting.plan import Machines, listed, make_plan
    from curation.reporting.report import save_plan
    from curation.sources.listing import list_sources
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    what = listed(list_sources(chosen.sources))
    known = read_pilot(pilot) if pilot else None
    forecast = make_plan(what, chosen.curation.download, Machines(cpus, gpus), known)
    if run:
        save_plan(RunFolder(run), forecast)
    print("\n".join(forecast.lines()))


@app.command()
def status(run: RunOption = Path("runs/demo")) -> None:
    """How a run stands, stage by stage: while it works, from another terminal, or after a crash."""
    from common.executors.status_table import status_lines

    print("\n".join(status_lines(run)))


@app.command("yield")
def show_yield(
    run: RunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    preset: PresetOption = "",
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="threshold=2,3,4 or =first:last:step; repeat")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG or SVG to draw the grid into")] = None,
    settings: SetOption = None,
) -> None:
    """Clips and hours that other thresholds would keep, and which rule took how much. Nothing is computed anew."""
    from curation.decide.yields import GRID, draw_yield, hours_lines, parse_axis, yield_lines, yield_table

    select = _thresholds(recipe, preset, settings)
    table = yield_table(run, select, dict(map(parse_axis, grid)) if grid else GRID)
    print("\n".join([*yield_lines(table), "", *hours_lines(run, select)]))
    if picture:
        draw_yield(table, picture)
        print(picture)


@app.command()
def reselect(
    run: RunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    preset: PresetOption = "",
    test_list: Annotated[str, typer.Option(help="test split drawn by `omniavatar split`")] = "",
    settings: SetOption = None,
) -> None:
    """Decide again which clips are kept, with other thresholds over the stored scores."""
    from common.runs import RunFolder
    from curation.job import reselect as decide_again

    print("\n".join(decide_again(_thresholds(recipe, preset, settings), RunFolder(run), test_list).lines()))


@app.command()
def split(
    run: RunOption = Path("runs/demo"),
    count: Annotated[int, typer.Option(help="test clips")] = 100,
    seed: Annotated[int, typer.Option(help="another seed, another draw")] = 0,
    by_clip: Annotated[
        bool, typer.Option("--by-clip", help="random clips, as the paper says; their videos leak")
    ] = False,
    out: Annotated[Path, typer.Option(help="list to write; a recipe names it as curation.test_list")] = Path(
        "test.tsv"
    ),
) -> None:
    """Draw a test split: by video, nothing of a test clip's source nor a copy of it is left for training."""
    from common.clips import read_clips
    from curation.decide.split import draw_split, write_split

    write_split(out, draw_split(read_clips(run / "clips.parquet"), count, seed, "clip" if by_clip else "video"))
    print(out)


@app.command()
def freeze(
    run: RunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    contents: Annotated[bool, typer.Option(help="also hash the decoded clips, for comparing rebuilt ones")] = True,
    verbose: VerboseOption = False,
) -> None:
    """Write the kept clips as a list named by its content, from which others can make the same clips."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from curation.dataset.versions import freeze as write_version
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    header = write_version(RunFolder(run), chosen.curation.rules, run / "versions", chosen.executor, contents)
    print(run / "versions" / f"{header['name']}.parquet")


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`")],
    new: Annotated[Path, typer.Argument(help="another one")],
) -> None:
    """What lies between two versions of a data set: clips added, removed, changed, and the rules behind it."""
    from curation.dataset.versions import compare

    print("\n".join(compare(old, new).lines()))


@app.command()
def rebuild(
    version: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`")],
    run: RunOption = Path("runs/rebuilt"),
    videos: Annotated[str, typer.Option(help="folder with the videos; the others are downloaded")] = "",
    recipe: RecipeOption = "folder",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Make the clips of a list again, and say which are the same, which changed and which have vanished."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from curation.dataset.rebuild import rebuild as make_again
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    print("\n".join(make_again(version, RunFolder(run), chosen.executor, chosen.curation.download, videos).lines()))


@app.command()
def takedown(
    video_id: Annotated[str, typer.Argument(help="video_id of sources.parquet")],
    run: RunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove every trace of a video from a run, latents and mirror included; later runs refuse it."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from common.storage import Mirror
    from pipelines.recipe import read_recipe
    from pipelines.takedown import take_down

    chosen = read_recipe(recipe, tuple(settings or ()))
    # After `--` an id may begin with a dash.
    print("\n".join(take_down(RunFolder(run), video_id, chosen.curation.select).lines()))
    if chosen.mirror:
        mirror = Mirror(run, chosen.mirror)
        mirror.push()
        mirror.sweep()
