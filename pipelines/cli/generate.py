"""Commands of generation: one video, a list, the videos of a recipe; calibration of the residual cache."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.progress import setup_logging
from pipelines.cli.flow import run_flow
from pipelines.cli.options import GENERATE, RecipeOption, RetryOption, RunOption, SetOption, VerboseOption, within
from pipelines.cli.output import report, show

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

OUT = Path("avatar.mp4")
logger = logging.getLogger(__name__)

app = typer.Typer()


@app.command(rich_help_panel=GENERATE)
def generate(
    image: Annotated[
        Path | None,
        typer.Option(help="portrait to animate, or a video (its first frame); without one the base model draws it"),
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="audio the person speaks: wav, mp3, flac, m4a, mp4, ...")] = None,
    prompt: Annotated[str, typer.Option(help="first frame, behaviour, background")] = "",
    seconds: Annotated[
        float, typer.Option(help="without --audio: length of a silent video; with --plan: of the video (60)")
    ] = 0.0,
    samples: Annotated[
        Path | None,
        typer.Option("--list", help="prompt@@image@@audio lines, .csv, .jsonl or .json; --out is then a folder"),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="mp4 to write, its settings beside it; with --list a folder; never an input")
    ] = OUT,
    preset: Annotated[str, typer.Option(help="default, official or paper: how chunks are sampled and joined")] = "",
    measure: Annotated[
        bool, typer.Option("--measure", help="also measure drift of colours, of likeness and at joins, for the JSON")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="only say memory mode, peak memory and time; needs no weights")
    ] = False,
    gpu: Annotated[
        str, typer.Option(help="with --plan: a card such as 'RTX 4090', or all (default: this machine)")
    ] = "",
    host_memory: Annotated[
        float | None,
        typer.Option(help="with --plan: GB of host memory (default: free here; 64 with --gpu)", callback=within(1)),
    ] = None,
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    settings: SetOption = None,
    retry: RetryOption = False,
    force: Annotated[
        bool, typer.Option("--force", help="without any input: generate the recipe's videos again")
    ] = False,
    verbose: VerboseOption = False,
) -> None:
    """Image + audio + prompt to a talking video of any length; alone, the videos of the recipe."""
    setup_logging(verbose)
    changes = _settings(preset, settings, retry)
    if plan:
        return _plan(image, seconds or 60.0, gpu, host_memory, recipe, changes)
    if gpu or host_memory:
        raise typer.BadParameter("--gpu and --host-memory belong to --plan; add it.")
    if samples is not None:
        folder = out if out != OUT else samples.with_suffix("")
        return _make_list(samples, seconds, folder, preset, measure, recipe, changes)
    if image is None and audio is None and not prompt:
        return run_flow(recipe, run, changes, "generate", "generate", force)
    from common.outputs import check_output_folder
    from omniavatar.config import Request
    from omniavatar.video.inputs import read_request
    from omniavatar.video.target import check_target
    from pipelines.recipe import read_recipe

    # Output, inputs, recipe and weights are checked in this order, and before torch is imported, which takes seconds.
    request = Request(image, audio, prompt, seconds)
    check_target(out, request)
    inputs = read_request(request)
    chosen = read_recipe(recipe, changes)
    weights = _weights(chosen, measure)
    cache = (run or Path("runs") / chosen.name) / "cache" / "chunks"
    check_output_folder(cache)
    _warn_of_miniature(chosen, image)
    from pipelines.generate.animate import animate

    animate(request, inputs, chosen.generate, weights, out, cache, preset, measure=measure)
    report(video=out, settings=out.with_suffix(".json"))
    show(out)


def _plan(
    image: Path | None, seconds: float, gpu: str, host_memory: float | None, recipe: str, changes: tuple[str, ...]
) -> None:
    from omniavatar.planning.modes import free_host_memory
    from omniavatar.planning.sizes import networks_of
    from pipelines.generate.plan import ASSUMED_HOST, forecast_video, local_device, plan_lines, table_lines
    from pipelines.recipe import read_recipe
    from training.planning.devices import DEVICES, named_device

    chosen = read_recipe(recipe, changes)
    networks, config = networks_of(chosen.named_models()), chosen.generate
    host = host_memory * 1e9 if host_memory else ASSUMED_HOST if gpu else free_host_memory()
    size = _image_size(image) if image else None
    if gpu == "all":
        forecasts = [forecast_video(config, networks, device, host, seconds, size) for device in DEVICES]
        forecasts.sort(key=lambda each: (each.device.memory, each.device.flops))
        report(plans=forecasts)
        return show("\n".join(table_lines(forecasts)))
    device = named_device(gpu) if gpu else local_device()
    forecast = forecast_video(config, networks, device, host, seconds, size)
    report(plans=[forecast])
    show("\n".join(plan_lines(forecast, config, networks, host)))


def _image_size(image: Path) -> tuple[int, int]:
    from omniavatar.video.inputs import decode_image

    height, width = decode_image(image)[0].shape[:2]
    return height, width


def _make_list(
    samples: Path, seconds: float, out: Path, preset: str, measure: bool, recipe: str, changes: tuple[str, ...]
) -> None:
    from common.process.locks import hold_run
    from pipelines.generate.sample_list import read_samples
    from pipelines.generate.targets import RESULTS, check_targets
    from pipelines.recipe import read_recipe

    requested = check_targets(read_samples(samples, seconds), out, samples)
    chosen = read_recipe(recipe, changes)
    weights = _weights(chosen, measure)
    _warn_of_miniature(chosen, next((sample.request.image for sample in requested if sample.request.image), None))
    from pipelines.generate.animate_list import animate_list

    with hold_run(out, "omniavatar generate --list"):
        outcomes = animate_list(requested, chosen.generate, weights, out, chosen.executor, preset, measure=measure)
    bad = [outcome for outcome in outcomes if outcome.state != "kept"]
    failed = [{"unit": outcome.unit, "state": outcome.state, "message": outcome.message} for outcome in bad]
    report(videos=len(outcomes) - len(bad), failed=failed, results=out / RESULTS)
    show("\n".join(f"{outcome.unit}: {outcome.state}: {outcome.message}" for outcome in bad))
    show(f"{len(outcomes) - len(bad)} of {len(outcomes)} made; {out / RESULTS}")
    if bad:
        raise typer.Exit(1)


def _settings(preset: str, settings: list[str] | None, retry: bool) -> tuple[str, ...]:
    """The preset as settings of the recipe, then what was set by hand."""
    from omniavatar.config import preset as settings_of

    named = settings_of(preset) if preset else {}
    again = ["executor.retry=true"] if retry else []
    return (*(f"generate.{name}={value}" for name, value in named.items()), *again, *(settings or ()))


def _warn_of_miniature(recipe: "Recipe", image: Path | None) -> None:
    from pipelines.models.listing import miniature_warning

    if image is not None and (warning := miniature_warning(recipe, image)):
        logger.warning("%s", warning)


def _weights(recipe: "Recipe", measure: bool) -> dict[str, Path | None]:
    """The roles of generation, which must be there, and, to measure, the models that find faces, which may."""
    from omniavatar.config import GENERATION_ROLES
    from pipelines.config import LIKENESS_ROLES
    from pipelines.roles import require

    judges = recipe.model_paths(LIKENESS_ROLES) if measure else {}
    return {**judges, **require(recipe.model_paths(GENERATION_ROLES), GENERATION_ROLES)}


def _numbers(thresholds: str) -> list[float]:
    try:
        return [within(0)(float(part)) for part in thresholds.split(",")]
    except (ValueError, typer.BadParameter) as error:
        hint = f"'{thresholds}' was given, expected numbers of 0 or more with commas between."
        raise typer.BadParameter(hint, param_hint="--thresholds") from error


@app.command(rich_help_panel=GENERATE)
def calibrate(
    samples: Annotated[
        Path | None, typer.Option("--list", help="prompt@@image@@audio lines, .csv or .jsonl; default: test clips")
    ] = None,
    clips: Annotated[int, typer.Option(help="number of test clips of the run, without --list", callback=within(1))] = 4,
    thresholds: Annotated[str, typer.Option(help="cache_threshold values to try")] = "0.05,0.1,0.15,0.2,0.3,0.5",
    recipe: RecipeOption = "demo",
    run: RunOption = None,
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Fit `generate.cache_polynomial` for a model, and measure how like the videos stay at each `cache_threshold`."""
    setup_logging(verbose)
    from common.runs import RunFolder
    from omniavatar.config import GENERATION_ROLES
    from pipelines.recipe import read_recipe
    from pipelines.roles import require

    tried = _numbers(thresholds)
    chosen = read_recipe(recipe, tuple(settings or ()))
    folder = RunFolder(run or Path("runs") / chosen.name)
    weights = require(chosen.model_paths(GENERATION_ROLES), GENERATION_ROLES)
    from pipelines.generate.animate import load_avatar
    from pipelines.generate.calibrate import calibrate, clip_requests, listed_requests

    requests = listed_requests(samples) if samples else clip_requests(folder, clips, chosen.videos.frames)
    models = load_avatar(weights, chosen.generate)
    found = calibrate(models, requests, chosen.generate, tried)
    if models.rank == 0:
        report(calibration=found)
        show("\n".join(found.lines()))
