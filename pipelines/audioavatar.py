"""DAG of the second system: teach -> fit -> motion -> eval, of a recipe with `system: audioavatar`.

Engines are imported inside the steps: reading a recipe or skipping a done step should not wait for torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.progress import MetricLog
from common.runs import RunFolder, read_json
from pipelines.dag import Context, Step
from pipelines.inputs import file_stamps
from pipelines.roles import require
from training.audioavatar.config import LOG, SCORE_ROLES, TEACHER_ROLES, AvatarTrainConfig

if TYPE_CHECKING:
    from training.audioavatar.stages import Unit

_HERE = __name__
_SECONDS = ("cpu_seconds_each", "cpu_seconds_left")
AVATAR_STEPS = (
    Step(
        "teach",
        ("avatar.seed", "avatar.people", "avatar.voices", "avatar.teachers", "avatar.relief"),
        TEACHER_ROLES,
        "teacher",
        f"{_HERE}:teach",
        inputs=f"{_HERE}:sources",
        whole=f"{_HERE}:clips_are_there",
    ),
    Step("fit", ("avatar.fit",), (), "fits", f"{_HERE}:fit", inputs=f"{_HERE}:clips", whole=f"{_HERE}:fits_are_there"),
    Step(
        "motion",
        ("avatar.seed", "avatar.driver", "avatar.generator"),
        ("audio_encoder",),
        "motion.safetensors",
        f"{_HERE}:motion",
        inputs=f"{_HERE}:fits",
    ),
    Step(
        "eval",
        ("avatar.score",),
        SCORE_ROLES,
        "report/avatar.parquet",
        f"{_HERE}:judge",
        inputs=f"{_HERE}:motion_model",
    ),
)
TRAIN_STEPS = ("teach", "motion")
"""The first and the last step of what `omniavatar train` runs."""


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


def motion(context: Context) -> Mapping[str, Any]:
    """Fits and their audio -> the motion model."""
    from training.audioavatar.stages import motion as run_stage

    path = run_stage(context.recipe.avatar, context.run, require(context.models, ("audio_encoder",)))
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
    """Of `motion`: avatars, clips and their fits."""
    return file_stamps([*_files(context, "teacher"), *_files(context, "fits")])


def motion_model(context: Context) -> Any:
    """Of `eval`: the model, and the fits, which are scored too."""
    return file_stamps([context.run.root / "motion.safetensors", *_files(context, "fits")])


def clips_are_there(context: Context) -> bool:
    """Whether every avatar and every teacher clip is there."""
    return all(file.is_file() for file in _files(context, "teacher"))


def fits_are_there(context: Context) -> bool:
    """Whether every fit is there."""
    return all(file.is_file() for file in _files(context, "fits"))


def closing_lines(run: RunFolder) -> list[str]:
    """What a command ends with: the scores, where there are some, and the motion model."""
    scores, model = run.report / "avatar.json", Path(run.root) / "motion.safetensors"
    lines = [f"{name:36}{value}" for name, value in read_json(scores).items()] if scores.exists() else []
    return [*lines, str(model if model.exists() else run.root)]


def planned(config: AvatarTrainConfig, root: Path) -> list[dict[str, Any]]:
    """Units of every stage, how many are there, and CPU seconds that are left by the mean of those in the log.

    Without a log of this run nobody knows how long a unit takes, so nothing is said of it.
    """
    log = root / "logs" / LOG
    rows = MetricLog(log).rows() if log.exists() else []
    clips, held_out = config.people.train * config.voices.each, config.score.voices
    sizes = {"avatars": config.people.train, "teach": clips, "fit": clips, "motion": 1}
    sizes["score"] = (config.people.train + config.score.people) * held_out
    plan = []
    for stage, units in sizes.items():
        spent = [row["cpu_seconds"] for row in rows if row["stage"] == stage]
        done = len({row["step"] for row in rows if row["stage"] == stage})
        each = sum(spent) / len(spent) if spent else None
        left = None if each is None else round(each * max(units - done, 0), 1)
        plan.append({"stage": stage, "units": units, "done": done, "cpu_seconds_each": each, "cpu_seconds_left": left})
    return plan


def plan_lines(plan: list[dict[str, Any]]) -> list[str]:
    """The plan as a table."""
    head = f"{'stage':10}{'units':>8}{'done':>8}{'CPU s each':>13}{'CPU s left':>13}"
    numbers = [["-" if row[name] is None else f"{row[name]:.1f}" for name in _SECONDS] for row in plan]
    return [head] + [
        f"{row['stage']:10}{row['units']:>8}{row['done']:>8}{each:>13}{left:>13}"
        for row, (each, left) in zip(plan, numbers, strict=True)
    ]


def _units(context: Context) -> "list[Unit]":
    from training.audioavatar.stages import training_units

    return training_units(context.recipe.avatar)


def _files(context: Context, folder: str) -> Iterator[Path]:
    root = Path(context.run.root)
    for unit in _units(context):
        yield root / "avatars" / unit.person / "avatar.safetensors"
        yield root / folder / unit.file
