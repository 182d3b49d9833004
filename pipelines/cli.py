"""The `omniavatar` command line: one verb per step of the flow, and the whole flow as `run`."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from common.progress import setup_logging

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
log = logging.getLogger(__name__)

RecipeOption = Annotated[str, typer.Option("--recipe", help="name of a shipped recipe, or path to a YAML file")]
RunOption = Annotated[Path | None, typer.Option("--run", help="run folder; default runs/<recipe name>")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value on top of the recipe")]
ForceOption = Annotated[bool, typer.Option("--force", help="run finished steps again")]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="more log lines, and tracebacks")]


@app.command()
def demo(run: RunOption = None, settings: SetOption = None, verbose: VerboseOption = False) -> None:
    """Raw videos to a measured avatar video on the small world; ends with the path of the report."""
    setup_logging(verbose)
    print("This demo fine-tunes the shipped small adapter for a few steps; `omniavatar miniature` trains from nothing.")
    _run("demo", run, settings)


@app.command("run")
def run_recipe(
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    first: Annotated[str, typer.Option("--from", help="first step")] = "",
    last: Annotated[str, typer.Option("--to", help="last step")] = "",
    settings: SetOption = None,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a recipe, or a part of it; what is done already is not done again."""
    setup_logging(verbose)
    _run(recipe, run, settings, first, last, force)


def _step_command(name: str, text: str) -> None:
    def command(
        recipe: RecipeOption = "demo",
        run: RunOption = None,
        settings: SetOption = None,
        force: ForceOption = False,
        verbose: VerboseOption = False,
    ) -> None:
        setup_logging(verbose)
        _run(recipe, run, settings, name, name, force)

    app.command(name, help=text)(command)


_step_command("curate", "Sources to kept clips: shots, faces, speech, sync, quality, and a reason for every refusal.")
_step_command("latents", "Kept clips to shards: VAE latents, caption embeddings, audio features.")
_step_command("train", "Shards to an adapter checkpoint, with DeepSpeed.")
_step_command("eval", "Videos to metrics and the report.")


@app.command()
def generate(
    image: Annotated[
        Path | None, typer.Option(help="portrait to animate; without one the recipe's videos are made")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="sound it speaks")] = None,
    prompt: Annotated[str, typer.Option(help="first frame, behaviour, background")] = "",
    out: Annotated[Path, typer.Option(help="mp4 to write")] = Path("avatar.mp4"),
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    settings: SetOption = None,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Image + audio + prompt to a talking video of any length (or, without an image, the recipe's generate step)."""
    setup_logging(verbose)
    if image is None or audio is None:
        if image or audio:
            raise ValueError("A video needs both --image and --audio; only one was given.")
        return _run(recipe, run, settings, "generate", "generate", force)
    from pipelines.recipe import read_recipe
    from pipelines.videos import LongVideo, animate

    chosen = read_recipe(recipe, tuple(settings or ()))
    cache = (run or Path("runs") / chosen.name) / "cache" / "chunks"
    animate(LongVideo(image, audio, prompt), chosen.generate, chosen.model_paths(), out, cache)
    print(out)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="SQL over the views sources clips outcomes shards steps metrics")],
    run: Annotated[Path, typer.Option("--run")] = Path("runs/demo"),
) -> None:
    """Ask DuckDB about a run: `omniavatar query "select decision, count(*) from clips group by 1"`."""
    from common.query import run_query

    print(run_query(run, sql).to_pandas().to_string(index=False))


@app.command()
def models(recipe: RecipeOption = "demo", settings: SetOption = None) -> None:
    """Which model each role uses: its path and content hash."""
    from common.runs import hash_path
    from pipelines.recipe import read_recipe

    for role, path in read_recipe(recipe, tuple(settings or ())).model_paths().items():
        print(f"{role:16} {hash_path(path)[:12] if path else 'no weights':12}  {path or ''}")


@app.command()
def miniature(
    out: Annotated[Path, typer.Option(help="where the weights are written")] = Path("runs/miniature"),
    scale: Annotated[float, typer.Option(help="multiplies the minutes of every training")] = 1.0,
    verbose: VerboseOption = False,
) -> None:
    """Train every model of the small world again from nothing (about two hours on two cores)."""
    setup_logging(verbose)
    from pipelines.small_world import train_everything

    train_everything(out, scale)
    print(out)


def _run(
    name: str, run: Path | None, settings: list[str] | None, first: str = "", last: str = "", force: bool = False
) -> None:
    # Imported here: torch and its friends take seconds that `--help` should not wait for.
    from common.recipe import dump_recipe
    from common.runs import RunFolder, save_provenance
    from pipelines.dag import Context, run_steps
    from pipelines.recipe import read_recipe
    from pipelines.steps import STEPS, report
    from pipelines.words import closing_words

    recipe = read_recipe(name, tuple(settings or ()))
    folder = RunFolder(run or Path("runs") / recipe.name)
    models = recipe.model_paths()
    save_provenance(folder, dump_recipe(recipe), {role: path for role, path in models.items() if path})
    context = Context(recipe, folder, models)
    run_steps(context, STEPS, first, last, force)
    page = report(context)
    print("\n".join([*closing_words(folder), str(page)]))


def main() -> Any:
    """Entry point: bad input is one sentence and exit code 1, never a traceback (unless --verbose)."""
    warnings.filterwarnings("ignore")
    try:
        return app(standalone_mode=False)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit("stopped; run the same command again to go on")
    except (ValueError, OSError, RuntimeError, typer.BadParameter) as error:
        if "--verbose" in sys.argv:
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
