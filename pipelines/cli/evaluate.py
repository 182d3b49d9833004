"""Evaluation commands: sweeps of a recipe, test sets, and scores of videos of any system."""

from pathlib import Path
from typing import Annotated

import typer

from common.progress import setup_logging
from pipelines.cli.options import (
    EVALUATE,
    ForceOption,
    RayOption,
    RecipeOption,
    RetryOption,
    RunOption,
    SetOption,
    VerboseOption,
    executor_settings,
    existing_run,
    not_a_file,
    not_a_folder,
    pairs,
    within,
)
from pipelines.cli.output import JsonOption, report, show

SETS = Path("runs") / "sets"

app = typer.Typer()


@app.command(rich_help_panel=EVALUATE)
def sweep(
    file: Annotated[str, typer.Argument(help="name of a shipped sweep, or path to a YAML file")],
    out: Annotated[
        Path, typer.Option("--out", help="folder of the sweep; the same folder resumes a sweep", callback=not_a_file)
    ],
    workers: Annotated[int, typer.Option("--workers", help="rows at a time; 0 = all cores", callback=within(0))] = 0,
    results: Annotated[Path | None, typer.Option("--results", help="folder of the table; default OUT/results")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="only write the table of what is finished")] = False,
    retry: RetryOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train, sample and judge every row of a sweep with several seeds; ends with a table of paired differences."""
    setup_logging(verbose)
    from common.executors.config import ExecutorConfig
    from common.process.locks import hold_run
    from pipelines.sweep.settings import Places, cells, read_sweep

    config = read_sweep(file)
    cells(config, Places(out.resolve()))  # a wrong setting of a row is reported before torch is imported
    from pipelines.sweep.pages import write_results
    from pipelines.sweep.run import run_sweep

    executor = ExecutorConfig(workers=workers, retry_failed=1, retry=retry)
    command = f"omniavatar sweep {file} --out {out}"
    with hold_run(out, command):
        failed = [] if table_only else run_sweep(config, out, executor)
        table = write_results(config, Places(out.resolve()), results or out / "results", command)
    report(table=table, failed=[{"unit": outcome.unit, "message": outcome.message} for outcome in failed])
    show(table)
    for outcome in failed:
        show(f"{outcome.unit}: {outcome.message}")
    if failed:
        raise typer.Exit(1)


eval_app = typer.Typer(
    invoke_without_command=True,
    help="Videos to metrics and the report: the step of a recipe, or a command below for any folder of videos.",
)
app.add_typer(eval_app, name="eval", rich_help_panel=EVALUATE)


@eval_app.callback()
def evaluate_step(
    context: typer.Context,
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    settings: SetOption = None,
    ray: RayOption = "",
    retry: RetryOption = False,
    force: ForceOption = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """The eval step of a recipe: videos to metrics and the report; the commands below work on any folder of videos."""
    if context.invoked_subcommand is not None:
        return
    setup_logging(verbose)
    from pipelines.cli.flow import run_flow

    run_flow(recipe, run, [*(settings or ()), *executor_settings(ray, retry)], "eval", "eval", force or retry)


@eval_app.command("sets")
def draw_test_set(
    name: Annotated[str, typer.Argument(help="small_world, avspeech_semi, avspeech_face, hdtf100 or hdtf400_15s")],
    run: Annotated[
        Path | None, typer.Option("--run", help="curated run that the clips are drawn from", callback=existing_run)
    ] = None,
    files: Annotated[Path | None, typer.Option("--files", help="of the sets of HDTF: folder of its text files")] = None,
    count: Annotated[
        int, typer.Option("--count", help="of the sets of AVSpeech: clips to draw, by video", callback=within(1))
    ] = 100,
    seed: Annotated[
        int, typer.Option("--seed", help="of the draw; small_world and hdtf400_15s have none", callback=within(0))
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="list to write; default runs/sets/NAME.csv", callback=not_a_folder)
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(
            "--split", help="also write it for curation.test_list: no training on its videos", callback=not_a_folder
        ),
    ] = None,
) -> None:
    """Draw a test set and write it as a list with a hash; the same input gives the same bytes."""
    from common.errors import InputError
    from common.outputs import check_output_file, run_files, same_file
    from common.runs import RunFolder
    from curation.decide.split import write_split
    from eval.sets.catalog import draw_set, held_out, write_test_set

    path = out or SETS / f"{name}.csv"
    inputs = [*(run_files(run) if run else ()), *(files.glob("*.txt") if files else ())]
    check_output_file(path, inputs=inputs)
    if split:
        check_output_file(split, inputs=inputs)
        if split.absolute() == path.absolute() or same_file(split, path):
            raise InputError(f"--out and --split are both {split}; give two names.")
    chosen = draw_set(name, RunFolder(run) if run else None, files, count, seed)
    write_test_set(path, chosen)
    if split:
        write_split(split, held_out(chosen))
    report(test_set=chosen.name, clips=len(chosen.clips), sha256=chosen.sha256, written=path)
    show(f"{chosen.name}: {len(chosen.clips)} clips, {chosen.sha256}\n{path}")


@eval_app.command("inputs")
def cut_test_set(
    listed: Annotated[str, typer.Argument(metavar="LIST", help="file of `eval sets`, or name of a published list")],
    run: Annotated[Path, typer.Option("--run", help="curated run that has the clips", callback=existing_run)],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder to write; default runs/sets/<set>", callback=not_a_file)
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="for its face detector; default: the recipe of the run")] = "",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Write the inputs of a test set: images, audio, real videos, and the lists for `generate` and `eval import`."""
    setup_logging(verbose)
    from common.outputs import check_output_folder
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from eval.sets.catalog import find_list, read_test_set
    from eval.sets.inputs import CLIPS, SAMPLES, write_inputs
    from pipelines.recipe import read_recipe

    chosen, folder = read_test_set(find_list(listed)), RunFolder(run)
    about = read_recipe(recipe or str(folder.recipe_yaml), tuple(settings or ()))
    detector = about.model_paths(("face_detector",))["face_detector"]
    target = out or SETS / chosen.name
    check_output_folder(target)
    with hold_run(target, "omniavatar eval inputs"):
        outcomes = write_inputs(chosen, folder, target, about.curation.people, detector, about.executor)
    bad = [outcome for outcome in outcomes if outcome.state != "kept"]
    lines = [f"{outcome.unit}: {outcome.state}: {outcome.message}" for outcome in bad]
    done = f"{len(outcomes) - len(bad)} of {len(outcomes)} clips; {target / SAMPLES}, {target / CLIPS}"
    show("\n".join([*lines, done]))


@eval_app.command("import")
def import_list(
    file: Annotated[Path, typer.Argument(help="CSV or JSON lines: method, clip_id, video, reference, audio ...")],
    run: Annotated[Path, typer.Option("--run", help="run folder that the videos are judged in", callback=not_a_file)],
    sources: Annotated[
        list[str] | None,
        typer.Option("--made", help="METHOD=FOLDER of its <clip_id>.mp4, for the clips.csv of `eval inputs`"),
    ] = None,
) -> None:
    """Import a list of videos of any system into a run folder, which `eval run` then judges."""
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from eval.import_videos import import_videos

    named = pairs(sources, "--made", "METHOD=FOLDER", "ours=out")
    folders = {method: Path(folder) for method, folder in named}
    with hold_run(run, "omniavatar eval import"):
        counts = import_videos(file, RunFolder(run), folders)
    report(videos=counts)
    show(", ".join(f"{method} {count}" for method, count in counts.items()))


@eval_app.command("plan")
def plan_videos(recipe: RecipeOption = "demo", run: RunOption = None, settings: SetOption = None) -> None:
    """Show what `eval run` would do: videos per extractor, what is cached, what lacks weights, estimated time."""
    from common.runs import RunFolder
    from eval.config import ROLES
    from eval.manifest import read_manifest
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    folder, models = RunFolder(run or Path("runs") / chosen.name), chosen.model_paths(ROLES)
    read_manifest(folder)  # a wrong folder is reported before torch is imported
    from eval.plan import plan_evaluation, plan_lines

    planned = plan_evaluation(chosen.eval, models, folder)
    report(plan=planned)
    show("\n".join(plan_lines(planned)))


@eval_app.command("run")
def judge_videos(
    recipe: RecipeOption = "demo", run: RunOption = None, settings: SetOption = None, verbose: VerboseOption = False
) -> None:
    """Score the videos in the manifest of a run folder, made by any system; a killed run resumes."""
    setup_logging(verbose)
    from common.process.locks import hold_run
    from common.recipe import dump_recipe
    from common.runs import RunFolder, save_provenance
    from eval.config import ROLES
    from eval.manifest import read_manifest
    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    folder, models = RunFolder(run or Path("runs") / chosen.name), chosen.model_paths(ROLES)
    read_manifest(folder)
    from eval.job import evaluate
    from eval.reporting.report import write_report

    with hold_run(folder.root, "omniavatar eval run"):
        if not folder.recipe_yaml.exists():  # a run keeps the recipe that its videos were made with
            # Only the judges: the recipe's other models had no part in videos that were made elsewhere.
            save_provenance(folder, dump_recipe(chosen), {role: path for role in ROLES if (path := models[role])})
        evaluate(chosen.eval, models, folder, chosen.executor)
        page = write_report(folder, {})
    report(run=folder.root, report=page, scores=folder.report / "scores.json")
    show(page)


@eval_app.command("report")
def write_page(run: Annotated[Path, typer.Option("--run", help="a judged run folder", callback=existing_run)]) -> None:
    """Write the report of a judged run again from its files; nothing is measured again."""
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from eval.scoring.eval_table import read_metrics

    read_metrics(RunFolder(run))
    from eval.reporting.report import write_report

    with hold_run(run, "omniavatar eval report"):
        page = write_report(RunFolder(run), {})
    report(run=run, report=page)
    show(page)


@eval_app.command("compare")
def compare_runs(
    a: Annotated[str, typer.Argument(help="RUN or RUN:METHOD; default method: the one the run is about")],
    b: Annotated[str, typer.Argument(help="the same, to compare with")],
    all_metrics: Annotated[bool, typer.Option("--all", help="also the metrics that the report leaves out")] = False,
) -> None:
    """Paired tests between two runs, or two methods of one, on the clips that both have."""
    from common.runs import RunFolder
    from eval.reporting.summary import judged_method
    from eval.scoring.eval_table import read_groups, read_metrics

    (first, _, of_first), (second, _, of_second) = a.partition(":"), b.partition(":")
    runs = RunFolder(Path(first)), RunFolder(Path(second))
    tables = read_metrics(runs[0]), read_metrics(runs[1])
    methods = of_first or judged_method(runs[0]), of_second or judged_method(runs[1])
    from eval.metrics.clip_metrics import METRICS
    from eval.scoring.compare import difference_lines
    from eval.scoring.paired import compare_methods

    metrics = [name for name, metric in METRICS.items() if metric.shown or all_metrics]
    differences = compare_methods(tables, methods, (a, b), metrics, read_groups(runs[0]), runs)
    report(differences=differences)
    show("\n".join(difference_lines(differences)))


@eval_app.command("card")
def result_card(
    run: Annotated[Path, typer.Option("--run", help="a judged run folder", callback=existing_run)],
    test_set: Annotated[
        str, typer.Option("--test-set", help="list that the clips are of; default: the one they were imported with")
    ] = "",
) -> None:
    """Write the result card of a judged run: JSON and Markdown to quote numbers with."""
    from common.process.locks import hold_run
    from common.runs import RunFolder
    from eval.reporting.card import write_card
    from eval.scoring.eval_table import read_metrics
    from eval.sets.catalog import find_list, read_test_set

    read_metrics(RunFolder(run))  # a wrong folder is reported before anything is written there
    with hold_run(run, "omniavatar eval card"):
        card = write_card(RunFolder(run), read_test_set(find_list(test_set)) if test_set else None)
    report(card=card)
    show(card)
