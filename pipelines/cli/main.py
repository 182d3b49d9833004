"""The `omniavatar` command line: a command per step of the flow, and the whole flow as `run`."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.process.offline import go_online
from common.progress import setup_logging
from pipelines.cli.avatar import app as avatar_commands
from pipelines.cli.data import app as data_commands
from pipelines.cli.evaluate import app as eval_commands
from pipelines.cli.failures import end_command, prepare_streams
from pipelines.cli.flow import run_flow
from pipelines.cli.generate import app as generate_command
from pipelines.cli.options import (
    CURATE,
    MODELS,
    RUN,
    TRAIN,
    ForceOption,
    RayOption,
    RecipeOption,
    RetryOption,
    RunOption,
    SetOption,
    VerboseOption,
    check_utf8,
    executor_settings,
    existing_run,
    not_a_file,
    pairs,
    within,
)
from pipelines.cli.output import add_json, report, show
from pipelines.cli.rehearse import app as rehearse_command
from pipelines.cli.shards import app as shards_commands
from pipelines.cli.watch import app as watch_command

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command(rich_help_panel=RUN)
def demo(run: RunOption = None, settings: SetOption = None, verbose: VerboseOption = False) -> None:
    """Raw videos to a measured avatar video on the small world; ends with the path of the report."""
    setup_logging(verbose)
    show("This demo fine-tunes the shipped small adapter for a few steps; `omniavatar miniature` trains from nothing.")
    run_flow("demo", run, settings)


@app.command("run", rich_help_panel=RUN)
def run_recipe(
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    first: Annotated[str, typer.Option("--from", help="first step")] = "",
    last: Annotated[str, typer.Option("--to", help="last step")] = "",
    settings: SetOption = None,
    ray: RayOption = "",
    retry: RetryOption = False,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a recipe, or a part of it; finished steps are skipped."""
    setup_logging(verbose)
    run_flow(recipe, run, [*(settings or ()), *executor_settings(ray, retry)], first, last, force)


def _step_command(name: str, panel: str, text: str) -> None:
    def command(
        recipe: RecipeOption = "demo",
        run: RunOption = None,
        settings: SetOption = None,
        ray: RayOption = "",
        retry: RetryOption = False,
        force: ForceOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        setup_logging(verbose)
        run_flow(recipe, run, [*(settings or ()), *executor_settings(ray, retry)], name, name, force or retry)

    app.command(name, help=text, rich_help_panel=panel)(command)


_step_command(
    "curate", CURATE, "Sources to kept clips: shots, faces, speech, sync, quality, and a reason for every refusal."
)
_step_command("latents", TRAIN, "Kept clips to shards: VAE latents, caption embeddings, audio features.")


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    settings: SetOption = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="only forecast memory, time and disk, and what would make it fit")
    ] = False,
    gpu: Annotated[
        str, typer.Option(help="device to plan for, such as A100-80GB or H200 (default: this machine)")
    ] = "",
    ranks: Annotated[
        int | None, typer.Option(help="number of training processes (default: recipe)", callback=within(1))
    ] = None,
    ray: RayOption = "",
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Shards to an adapter checkpoint, with DeepSpeed, or the second system's stages; --plan forecasts the cost."""
    setup_logging(verbose)
    if not plan:
        chosen_ranks = [f"ranks={ranks}"] if ranks else []
        return run_flow(
            recipe, run, [*(settings or ()), *chosen_ranks, *executor_settings(ray, False)], "train", "train", force
        )
    from dataclasses import replace

    from pipelines.recipe import read_recipe

    chosen = read_recipe(recipe, tuple(settings or ()))
    if chosen.avatar is not None:
        from pipelines.audioavatar import plan_lines as avatar_plan
        from pipelines.audioavatar import planned

        forecast_of = planned(chosen.avatar, run or Path("runs") / chosen.name)
        report(plan=forecast_of)
        return show("\n".join(avatar_plan(forecast_of)))
    from training.planning.devices import named_device, this_device
    from training.planning.plan import plan as make_plan
    from training.planning.table import plan_lines

    named = chosen.named_models()
    model = replace(chosen.train.model, base=named["transformer"] or Path(), adapter=named["adapter"])
    device = named_device(gpu) if gpu else this_device()
    shards = (run or Path("runs") / chosen.name) / "shards"
    forecast = make_plan(replace(chosen.train, model=model), ranks or chosen.ranks, device, shards=shards)
    report(plan=forecast)
    show("\n".join(plan_lines(forecast)))


@app.command(rich_help_panel=RUN)
def query(
    sql: Annotated[str, typer.Argument(help="SQL, or the name of a query; without it views, columns and names")] = "",
    run: Annotated[Path, typer.Option("--run", help="run folder that a command has written to")] = Path("runs/demo"),
    values: Annotated[
        list[str] | None, typer.Option("--value", help="name=value of a $name in the query; may be repeated")
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="the same as --value, after the query")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="allow COPY ... TO and all else that is no SELECT, and files of others")
    ] = False,
) -> None:
    """Ask DuckDB about a run: `query "select decision, count(*) from clips group by 1"`, `query clip id=ID`."""
    from common.queries import QUERIES
    from common.query import catalogue_lines, run_query, table_lines

    if not sql:
        return show("\n".join(catalogue_lines()))
    named = dict(pairs([*(values or ()), *(words or ())], "NAME=VALUE", "NAME=VALUE", "omniavatar query clip id=ID"))
    if missing := sorted(set(QUERIES[sql].values) - set(named)) if sql in QUERIES else []:
        raise typer.BadParameter(f"'{sql}' asks about one {missing[0]}; write omniavatar query {sql} {missing[0]}=...")
    table = run_query(run, sql, named, write)
    report(columns=table.column_names, rows=table)
    show("\n".join(table_lines(table)))


@app.command(rich_help_panel=RUN)
def db(
    run: Annotated[Path, typer.Argument(help="run folder", callback=existing_run)],
) -> None:
    """Write RUN/run.duckdb with the views of a run, for any DuckDB client."""
    from common.query import write_database

    database = write_database(run)
    report(database=database)
    show(f"{database}\nopen it with any DuckDB client, e.g.: duckdb -readonly {database.resolve()}")


model_commands = typer.Typer()
models_app = typer.Typer(no_args_is_help=True, help="Published weights: list, fetch, check and convert them.")
model_commands.add_typer(models_app, name="models", rich_help_panel=MODELS)


@models_app.command("list")
def list_models(
    recipe: Annotated[str, typer.Option("--recipe", help="also say what this recipe has for each role")] = "",
    settings: SetOption = None,
) -> None:
    """Every role: what is published for it, by whom, how large, under which licence, and what that forbids."""
    from pipelines.models.listing import entry_lines, role_lines
    from pipelines.models.published import read_published

    named = None
    if settings and not recipe:
        raise typer.BadParameter("settings are of a recipe; name one with --recipe", param_hint="--set")
    if recipe:
        from pipelines.recipe import read_recipe

        named = read_recipe(recipe, tuple(settings or ())).named_models()
    published = read_published()
    report(entries=published, recipe=named)
    show("\n".join([*role_lines(published, named), "", *entry_lines(published)]))


@models_app.command("fetch")
def fetch_models(
    names: Annotated[list[str], typer.Argument(help="entries of `models list`, or roles that only one entry serves")],
    to: Annotated[
        Path, typer.Option("--to", help="folder of weights; each entry gets its own in it", callback=not_a_file)
    ],
    accept: Annotated[bool, typer.Option("--accept", help="your use is allowed by what the licences say")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Fetch published weights, licence first; killed and run again it goes on where it was."""
    setup_logging(verbose)
    go_online()
    from pipelines.models.fetch import fetch
    from pipelines.models.listing import licence_lines, recipe_lines
    from pipelines.models.published import choose, read_published

    published = read_published()
    entries = {name: published[name] for name in choose(names, published)}
    show("\n".join(licence_lines(entries)), flush=True)
    fetched = fetch(entries, to, accept)
    report(models=fetched)
    show("\n".join(recipe_lines(fetched)))


@models_app.command("check")
def check_models(
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    content: Annotated[bool, typer.Option("--hash", help="also compare SHA-256 with what was fetched")] = False,
) -> None:
    """Every tensor of every role of a recipe, by name, shape and type, and whether the roles fit together."""
    from pipelines.models.check import check
    from pipelines.recipe import read_recipe

    findings = check(read_recipe(recipe, tuple(settings or ())).named_models(), content)
    report(roles=findings)
    show("\n".join(line for finding in findings for line in finding.lines()))
    if any(finding.problems for finding in findings):
        raise typer.Exit(1)


@models_app.command("export")
def export_model(
    role: Annotated[str, typer.Option("--role", help="transformer, vae, text_encoder or adapter")],
    layout: Annotated[str, typer.Option("--layout", help="diffusers, transformers, original, official or merged")],
    to: Annotated[Path, typer.Option("--to", help="folder or file to write; must not exist")],
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    dtype: Annotated[str, typer.Option("--dtype", help="float32 or bfloat16; default: as stored")] = "",
) -> None:
    """Write a model of a recipe in another published layout; `merged` joins the adapter and its transformer."""
    if dtype not in ("", "float32", "bfloat16"):
        raise typer.BadParameter(f"'{dtype}' was given, expected float32 or bfloat16.", param_hint="--dtype")
    import torch

    from pipelines.models.export import export
    from pipelines.recipe import read_recipe

    paths = read_recipe(recipe, tuple(settings or ())).named_models()
    exported = export(role, layout, paths, to, getattr(torch, dtype) if dtype else None)
    report(written=to)
    show("\n".join([*exported.lines(), str(to)]))


@model_commands.command(rich_help_panel=MODELS)
def miniature(
    out: Annotated[Path, typer.Option(help="where the weights are written", callback=not_a_file)] = Path(
        "runs/miniature"
    ),
    scale: Annotated[
        float, typer.Option(help="multiplies the minutes of every training", callback=within(0, open=True))
    ] = 1.0,
    verbose: VerboseOption = False,
) -> None:
    """Train every model of the small world again from nothing (about two hours on two cores)."""
    setup_logging(verbose)
    from common.process.locks import hold_run

    with hold_run(out, "omniavatar miniature"):
        from pipelines.small_world import train_everything

        train_everything(out, scale)
    report(written=out)
    show(out)


app.add_typer(shards_commands, name="shards", rich_help_panel=TRAIN)
groups = (
    data_commands,
    watch_command,
    generate_command,
    avatar_commands,
    eval_commands,
    model_commands,
    rehearse_command,
)
for commands in groups:
    app.add_typer(commands)
add_json(app)


def main() -> None:
    """Entry point of the command line; see `pipelines.cli.failures` for how errors end it."""
    prepare_streams()
    sys.exit(end_command(_invoke, sys.argv[1:]))


def _invoke() -> object:
    # Not `app()`, which ends on Ctrl-C and on a closed pipe by itself, without a word of ours.
    command = typer.main.get_command(app)
    with command.make_context("omniavatar", sys.argv[1:]) as context:
        check_utf8([*sys.argv[1:], os.getcwd()])
        return command.invoke(context)


if __name__ == "__main__":
    main()
