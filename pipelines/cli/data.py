"""Commands about curated data: forecast, yield of thresholds, test splits, versions of the data set, takedowns."""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.progress import setup_logging
from pipelines.cli.options import (
    CURATE,
    RUN,
    ExistingRunOption,
    RecipeOption,
    SetOption,
    VerboseOption,
    existing_file,
    existing_run,
    not_a_file,
    not_a_folder,
    within,
)
from pipelines.cli.output import report, show

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
        Path | None,
        typer.Option(help="run folder of a sample of these sources, to scale up from", callback=existing_run),
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPU cores to plan for", callback=within(1))] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs to plan for", callback=within(0))] = 0,
    run: Annotated[
        Path | None,
        typer.Option("--run", help="run folder to store the forecast in, for its report", callback=not_a_file),
    ] = None,
    settings: SetOption = None,
) -> None:
    """Forecast of curation: hours of CPU and GPU, days, bytes, and the bottleneck. Downloads nothing."""
    from common.process.locks import hold_run
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
        with hold_run(run, "omniavatar plan"):
            save_plan(RunFolder(run), forecast)
    report(plan=forecast)
    show("\n".join(forecast.lines()))


@app.command(rich_help_panel=RUN)
def status(run: ExistingRunOption = Path("runs/demo")) -> None:
    """Progress of a run, stage by stage: during the run from another terminal, or after a crash."""
    from common.executors.status import read_status, status_lines
    from common.query import run_query
    from common.runs import RunFolder

    report(stages=read_status(RunFolder(run)), failures=run_query(run, "failures"))
    show("\n".join(status_lines(run)))


@app.command("yield", rich_help_panel=CURATE)
def show_yield(
    run: ExistingRunOption = Path("runs/demo"),
    recipe: RecipeOption = "demo",
    preset: PresetOption = "",
    grid: Annotated[
        list[str] | None, typer.Option("--grid", help="threshold=2,3,4 or threshold=first:last:step; may be repeated")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG or SVG file to draw the grid into", callback=not_a_folder)
    ] = None,
    settings: SetOption = None,
) -> None:
    """Clips and hours that other thresholds would keep, and what each rule rejects, from the stored scores."""
    from common.outputs import check_output_file, run_files
    from curation.decide.yields import GRID, draw_yield, hours_lines, hours_rows, parse_axis, yield_lines, yield_table

    if plot:
        check_output_file(plot, (".png", ".svg"), run_files(run))
    select = _thresholds(recipe, preset, settings)
    table = yield_table(run, select, dict(map(parse_axis, grid)) if grid else GRID)
    hours = [{"hours": hours, "what": what} for hours, what in hours_rows(run, select)]
    report(thresholds=table, hours=hours)
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
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from curation.decide.reselect import reselect as decide_again

    select = _thresholds(recipe, preset, settings)
    with hold_run(run, "omniavatar reselect"):
        summary = decide_again(select, RunFolder(run), test_list)
    report(summary=summary)
    show("\n".join(summary.lines()))


@app.command(rich_help_panel=CURATE)
def split(
    run: ExistingRunOption = Path("runs/demo"),
    count: Annotated[int, typer.Option(help="test clips", callback=within(1))] = 100,
    seed: Annotated[int, typer.Option(help="random seed of the draw", callback=within(0))] = 0,
    by_clip: Annotated[
        bool,
        typer.Option(
            "--by-clip", help="draw clips, as the paper does, not videos: other clips of a test video stay in training"
        ),
    ] = False,
    out: Annotated[
        Path, typer.Option(help="list to write, for curation.test_list of a recipe", callback=not_a_folder)
    ] = Path("test.tsv"),
) -> None:
    """Draw a test split by video: neither the source of a test clip nor a duplicate of it stays in training."""
    from common.outputs import check_output_file, run_files
    from common.process.locks import hold_run
    from curation.decide.split import draw_split, write_split

    check_output_file(out, inputs=run_files(run))
    with hold_run(run, "omniavatar split"):
        write_split(out, draw_split(run / "clips.parquet", count, seed, "clip" if by_clip else "video"))
    report(written=out)
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
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from curation.dataset.freeze import freeze as write_version
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    with hold_run(run, "omniavatar freeze"):
        header = write_version(RunFolder(run), chosen.curation.rules, run / "versions", chosen.executor, contents)
    version = run / "versions" / f"{header['name']}.parquet"
    report(version=version, header=header)
    show(version)


@app.command(rich_help_panel=CURATE)
def diff(
    old: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`", callback=existing_file)],
    new: Annotated[Path, typer.Argument(help="list to compare with", callback=existing_file)],
) -> None:
    """Compare two versions of a data set: clips added, removed and changed, and the rules that changed."""
    from curation.dataset.difference import compare

    difference = compare(old, new)
    report(difference=difference)
    show("\n".join(difference.lines()))


@app.command(rich_help_panel=CURATE)
def rebuild(
    version: Annotated[Path, typer.Argument(help="list of `omniavatar freeze`", callback=existing_file)],
    run: Annotated[Path, typer.Option("--run", help="run folder to write", callback=not_a_file)] = Path("runs/rebuilt"),
    videos: Annotated[str, typer.Option(help="folder that holds some of the videos; the rest is downloaded")] = "",
    recipe: RecipeOption = "folder",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Rebuild the clips of a version, and list which are identical, which changed and which are unavailable."""
    setup_logging(verbose)
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from curation.dataset.rebuild import rebuild as make_again
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    with hold_run(run, "omniavatar rebuild"):
        rebuilt = make_again(version, RunFolder(run), chosen.executor, chosen.curation.download, videos)
    report(version=rebuilt.name, clips=rebuilt.table)
    show("\n".join(rebuilt.lines()))


@app.command(rich_help_panel=CURATE)
def takedown(
    video_id: Annotated[
        str, typer.Argument(help="video_id of sources.parquet, to the letter; after -- it may begin with a dash")
    ],
    run: ExistingRunOption = Path("runs/demo"),
    only_plan: Annotated[bool, typer.Option("--plan", help="only print what would be removed, and change nothing")] = (
        False
    ),
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Remove a video from a run, its latents and mirror included; later runs reject it. Prints first what it removes:
    rows and files with exactly this id or a clip id of it, and files that these rows name."""
    setup_logging(verbose)
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from common.storage import Mirror
    from curation.dataset.takedown import plan as make_plan
    from pipelines.recipe import read_recipe
    from pipelines.takedown import plan_lines, take_down

    chosen, folder = read_recipe(recipe, tuple(settings or ())), RunFolder(run)
    if only_plan:
        show("\n".join(plan_lines(folder, make_plan(folder, video_id), only_plan)))
        return
    with hold_run(run, "omniavatar takedown"):
        entry = make_plan(folder, video_id)
        show("\n".join(plan_lines(folder, entry, only_plan)))
        show("\n".join(take_down(folder, video_id, chosen.curation.select, entry).lines()))
        if chosen.mirror:
            mirror = Mirror(run, chosen.mirror)
            mirror.push()
            mirror.sweep()
