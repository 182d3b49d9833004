"""What the steps of the second system do, what they read beyond the recipe, and whether their products are whole.

Engines are imported inside the steps: reading a recipe or skipping a done step should not wait for torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.dag import Context
from pipelines.inputs import file_stamps
from pipelines.roles import require
from training.audioavatar.config import SCORE_ROLES, TEACHER_ROLES

if TYPE_CHECKING:
    from training.audioavatar.stages import Unit


def teach(context: Context) -> Mapping[str, Any]:
    """Pictures and voices -> avatars and teacher clips."""
    from training.audioavatar.stages import teach as run_stage

    run_stage(context.recipe.avatar, context.run, require(context.models, TEACHER_ROLES))
    return {"clips": len(_units(context))}


def fit(context: Context) -> Mapping[str, Any]:
    """Teacher clips -> motion of each avatar's particles."""
    from training.audioavatar.stages import fit as run_stage

    run_stage(context.recipe.avatar, context.run)
    return {"clips": len(_units(context))}


def embed(context: Context) -> Mapping[str, Any]:
    """Fits and their audio -> the joint embedding."""
    return _train("embed", context)


def motion(context: Context) -> Mapping[str, Any]:
    """Fits and their audio -> the generator of motion."""
    return _train("motion", context)


def refine(context: Context) -> Mapping[str, Any]:
    """The generator's samples and the fits -> their refinement."""
    return _train("refine", context)


def joint(context: Context) -> Mapping[str, Any]:
    """Generator, refinement, clips and their teacher -> the motion model."""
    return _train("joint", context)


def _train(stage: str, context: Context) -> Mapping[str, Any]:
    from training.audioavatar import networks

    roles = TEACHER_ROLES if stage == "joint" else ("audio_encoder",)
    path = getattr(networks, stage)(context.recipe.avatar, context.run, require(context.models, roles))
    return {"bytes": path.stat().st_size}


def judge(context: Context) -> Mapping[str, Any]:
    """Held-out voices said by everybody trained on and by held-out people -> the table of scores."""
    from training.audioavatar.score import score

    return score(context.recipe.avatar, context.run, require(context.models, SCORE_ROLES))


def sources(context: Context) -> Any:
    """Of `teach`: the files of the folders that pictures and voices come from."""
    config = context.recipe.avatar
    folders = [config.people.folder, config.voices.folder]
    return [
        file_stamps(sorted(Path(folder).iterdir())) if folder and Path(folder).is_dir() else None for folder in folders
    ]


def clips(context: Context) -> Any:
    """Of `fit`: avatars and teacher clips."""
    return file_stamps(_files(context, "teacher"))


def fits(context: Context) -> Any:
    """Of `embed`: avatars, clips and their fits."""
    return file_stamps([*_files(context, "teacher"), *_files(context, "fits")])


def fits_and_space(context: Context) -> Any:
    """Of `motion`: those, and the embedding if motion is generated in it."""
    learnt = context.recipe.avatar.space == "embedding"
    return [fits(context), file_stamps([context.run.root / "embedding.safetensors"] if learnt else [])]


def generator(context: Context) -> Any:
    """Of `refine`: the generator, and the fits."""
    return [fits(context), file_stamps([context.run.root / "generator.safetensors"])]


def refiner(context: Context) -> Any:
    """Of `joint`: the refiner as well."""
    return [generator(context), file_stamps([context.run.root / "refiner.safetensors"])]


def motion_model(context: Context) -> Any:
    """Of `eval`: the model, and the fits, which are scored too."""
    return file_stamps([context.run.root / "motion.safetensors", *_files(context, "fits")])


def clips_are_there(context: Context) -> bool:
    """Whether every avatar and every teacher clip is there."""
    return all(file.is_file() for file in _files(context, "teacher"))


def fits_are_there(context: Context) -> bool:
    """Whether every fit is there."""
    return all(file.is_file() for file in _files(context, "fits"))


def _units(context: Context) -> "list[Unit]":
    from training.audioavatar.stages import training_units

    return training_units(context.recipe.avatar)


def _files(context: Context, folder: str) -> Iterator[Path]:
    root = Path(context.run.root)
    for unit in _units(context):
        yield root / "avatars" / unit.person / "avatar.safetensors"
        yield root / folder / unit.file
