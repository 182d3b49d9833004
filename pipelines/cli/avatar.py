"""Commands of the second system: an avatar from one picture, and what it says."""

from pathlib import Path
from typing import Annotated

import typer

from common.progress import setup_logging
from pipelines.cli.options import GENERATE, RecipeOption, SetOption, VerboseOption, existing_file, not_a_file, within
from pipelines.cli.output import show

app = typer.Typer()
avatar_app = typer.Typer(
    no_args_is_help=True, help="A 3D Gaussian avatar from one picture: build it, let it say audio."
)
app.add_typer(avatar_app, name="avatar", rich_help_panel=GENERATE)

Avatars = Annotated[Path, typer.Option("--avatar", help="folder that `avatar build` has written")]


@avatar_app.command()
def build(
    image: Annotated[Path, typer.Option(help="portrait that looks at the camera", callback=existing_file)],
    out: Annotated[Path, typer.Option(help="folder of the avatar", callback=not_a_file)] = Path("avatar"),
    size: Annotated[
        int,
        typer.Option(help="longest side in px at which it is built; larger is finer and slower", callback=within(32)),
    ] = 64,
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """One picture to an avatar of Gaussian particles, with a canonical.ply that 3DGS viewers open."""
    setup_logging(verbose)
    from pipelines.recipe import read_recipe

    detector = read_recipe(recipe, tuple(settings or ())).model_paths(("face_detector",))["face_detector"]
    from audioavatar.config import ReliefConfig
    from audioavatar.export import write_ply
    from audioavatar.say import build as build_avatar

    avatar = build_avatar(image, detector, ReliefConfig(size=size))
    path = avatar.save(out)
    write_ply(avatar.particles, out / "canonical.ply")
    show(f"{path}: {len(avatar.particles)} particles")


@avatar_app.command()
def say(
    avatar: Avatars,
    audio: Annotated[Path, typer.Option(help="audio it says: wav, mp3, flac, m4a, mp4, ...", callback=existing_file)],
    out: Annotated[Path, typer.Option(help="mp4 to write")] = Path("talk.mp4"),
    turntable: Annotated[
        float, typer.Option(help="swing the camera by so many degrees to both sides", callback=within(0))
    ] = 0.0,
    size: Annotated[int, typer.Option(help="longest side of the video in px", callback=within(32))] = 128,
    motion: Annotated[
        Path | None, typer.Option(help="motion model of a training (default: the shipped one of the small world)")
    ] = None,
    ply: Annotated[
        Path | None, typer.Option(help="folder for canonical.ply and motion.safetensors as well", callback=not_a_file)
    ] = None,
    every_frame: Annotated[bool, typer.Option("--ply-frames", help="with --ply: a .ply of every frame, too")] = False,
    strength: Annotated[
        float, typer.Option(help="of the mouth's motion; faces with small mouths need less", callback=within(0))
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="another seed, another motion")] = 0,
    recipe: RecipeOption = "demo",
    settings: SetOption = None,
    verbose: VerboseOption = False,
) -> None:
    """An avatar and audio to a talking video, from any view within about 20 degrees."""
    setup_logging(verbose)
    if every_frame and ply is None:
        raise typer.BadParameter("--ply-frames belongs to --ply; add the folder.")
    from omniavatar.video.target import check_target
    from pipelines.recipe import read_recipe
    from pipelines.roles import require

    check_target(out)
    paths = require(read_recipe(recipe, tuple(settings or ())).model_paths(("audio_encoder",)), ("audio_encoder",))
    from audioavatar.config import SayConfig
    from audioavatar.export import write_motion, write_sequence
    from audioavatar.say import SHIPPED_MOTION, AudioAvatar

    speaker = AudioAvatar.load(avatar, paths["audio_encoder"], motion or SHIPPED_MOTION)
    talk = speaker.say(audio, SayConfig(longest_side=size, seed=seed, strength=strength, turntable=turntable))
    talk.save(out)
    if ply is not None:
        write_motion(talk.avatar, talk.motion, ply)
        if every_frame:
            show(f"{len(list(write_sequence(talk.avatar, talk.motion, ply / 'frames')))} frames in {ply / 'frames'}")
    show(out)
