"""Commands about shards: a forecast of their size and time, and verification."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.progress import setup_logging
from pipelines.cli.options import ExistingRunOption, RecipeOption, SetOption, existing_run, within
from pipelines.cli.output import report, show

if TYPE_CHECKING:
    from common.runs import RunFolder
    from latents.forecast import Length, Speed

app = typer.Typer(no_args_is_help=True, help="Shards of latents: forecast their size, verify their content.")


@app.command()
def verify(
    run: ExistingRunOption = Path("runs/demo"),
    images: Annotated[
        int, typer.Option(help="number of samples to decode into a PNG, next to their source", callback=within(0))
    ] = 0,
    seed: Annotated[int, typer.Option(help="random seed of the choice of samples", callback=within(0))] = 0,
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
) -> None:
    """Read the shards and check every checksum; lists corrupt samples and exits with 1 if there are any."""
    setup_logging()
    from common.runs import RunFolder
    from latents.verify import verify_shards

    folder = RunFolder(run)
    verdict = verify_shards(folder)
    report(shards=verdict)
    show("\n".join(verdict.lines()))
    if images and not verdict.bad:
        show("\n".join(_sheet(folder, images, seed, recipe, settings)))
    raise typer.Exit(1 if verdict.bad else 0)


def _sheet(run: "RunFolder", images: int, seed: int, recipe: str, settings: list[str] | None) -> list[str]:
    from latents.sheet import decode_samples, write_sheet
    from omniavatar.config import LoadConfig
    from omniavatar.encoders.vae import load_vae
    from omniavatar.models import resolve_device
    from pipelines.recipe import read_recipe
    from pipelines.roles import require

    chosen = read_recipe(recipe, tuple(settings or ()))
    device, dtype = resolve_device(LoadConfig(chosen.latents.device, chosen.latents.dtype))
    vae = load_vae(require(chosen.model_paths(("vae",)), ("vae",))["vae"], dtype, device)
    decoded = decode_samples(run, vae, images, seed)
    sheet = run.report / "shards.png"
    write_sheet(sheet, decoded)
    return [*(f"{sample.psnr:6.1f} dB  {sample.clip_id}" for sample in decoded), str(sheet)]


@app.command()
def forecast(
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", help="run folder whose kept clips, and measured speed if any, are used", callback=existing_run
        ),
    ] = None,
    clips: Annotated[int, typer.Option(help="number of clips, without --run", callback=within(0))] = 0,
    hours: Annotated[float, typer.Option(help="hours of video, with --clips", callback=within(0))] = 0.0,
    workers: Annotated[int, typer.Option(help="number of encoding workers", callback=within(1))] = 1,
    probe: Annotated[
        bool, typer.Option("--probe", help="measure the speed on this machine, on a few frames of noise")
    ] = False,
) -> None:
    """Forecast of the bytes and hours that encoding takes."""
    setup_logging()
    from latents.encode import load_encoders
    from latents.forecast import even_lengths, read_widths
    from latents.forecast import forecast as make_forecast
    from latents.forecast import probe as measure
    from omniavatar.config import ENCODER_ROLES, LoadConfig
    from omniavatar.models import resolve_device
    from pipelines.recipe import read_recipe
    from pipelines.roles import require

    chosen = read_recipe(recipe, tuple(settings or ()))
    config, named = chosen.latents, chosen.named_models()
    if not clips and run is None:
        raise typer.BadParameter("give --run with curated clips, or --clips and --hours")
    lengths = even_lengths(clips, hours, config.buckets[0]) if clips else _kept_lengths(run or Path())
    speed = _speed(run) if run else None
    if probe:
        place = resolve_device(LoadConfig(config.device, config.dtype))
        models = require(chosen.model_paths(ENCODER_ROLES), ENCODER_ROLES)
        encoders = load_encoders(models, config.references, config.audio, *place)
        speed = measure(encoders, config.buckets[0])
    widths = read_widths(named["text_encoder"], named["audio_encoder"])
    size = make_forecast(lengths, config, widths, speed)
    report(forecast=size)
    show("\n".join(size.lines(workers)))


def _kept_lengths(run: Path) -> "list[Length]":
    from common.clips import stream_clips
    from common.runs import RunFolder
    from latents.forecast import Length

    rows = stream_clips(RunFolder(run).clips_parquet, ("decision", "duration", "height", "width", "crop"))
    kept = (row for row in rows if row["decision"] == "kept")
    shapes = ((row["duration"], row["crop"] or (0, 0, row["width"], row["height"])) for row in kept)
    return [Length(seconds, height, width) for seconds, (_, _, width, height) in shapes]


def _speed(run: Path) -> "Speed | None":
    """What the last job of a run took."""
    from common.runs import RunFolder
    from latents.bill import last_bill
    from latents.forecast import Speed

    bill = last_bill(RunFolder(run))
    return Speed(0.0, bill.seconds / bill.megapixel_frames) if bill and bill.megapixel_frames else None
