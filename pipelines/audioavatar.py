"""DAG of the second system, of a recipe with a section `avatar`: teach, fit, embed, motion, refine, joint, eval.

Their work is named, not imported: reading a recipe or skipping a done step should not wait for torch.
"""

from pathlib import Path
from typing import Any

from common.progress import MetricLog
from common.runs import RunFolder, read_json
from pipelines.dag import Step
from training.audioavatar.config import LOG, SCORE_ROLES, TEACHER_ROLES, AvatarTrainConfig

_HERE = "pipelines.audioavatar_steps"
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
        "embed",
        ("avatar.seed", "avatar.embedding"),
        ("audio_encoder",),
        "embedding.safetensors",
        f"{_HERE}:embed",
        inputs=f"{_HERE}:fits",
    ),
    Step(
        "motion",
        ("avatar.seed", "avatar.gesture_teachers", "avatar.space", "avatar.driver", "avatar.generator"),
        ("audio_encoder",),
        "generator.safetensors",
        f"{_HERE}:motion",
        inputs=f"{_HERE}:fits_and_space",
    ),
    Step(
        "refine",
        ("avatar.seed", "avatar.refinement"),
        ("audio_encoder",),
        "refiner.safetensors",
        f"{_HERE}:refine",
        inputs=f"{_HERE}:generator",
    ),
    Step(
        "joint",
        ("avatar.seed", "avatar.joint", "avatar.joint_clips"),
        TEACHER_ROLES,
        "motion.safetensors",
        f"{_HERE}:joint",
        inputs=f"{_HERE}:refiner",
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
TRAIN_STEPS = ("teach", "joint")
"""The first and the last step of what `omniavatar train` runs."""


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
    sizes = {"avatars": config.people.train, "teach": clips, "fit": clips}
    sizes |= dict.fromkeys(("embed", "motion", "refine", "joint"), 1)
    sizes["score"] = (config.people.train + config.score.people) * held_out
    plan = []
    for stage, units in sizes.items():
        spent = [row["cpu_seconds"] for row in rows if row["stage"] == stage]
        done = len({row["step"] for row in rows if row["stage"] == stage})
        each = sum(spent) / len(spent) if spent else None
        remaining = None if each is None else round(each * max(units - done, 0), 1)
        plan.append(
            {"stage": stage, "units": units, "done": done, "cpu_seconds_each": each, "cpu_seconds_left": remaining}
        )
    return plan


def plan_lines(plan: list[dict[str, Any]]) -> list[str]:
    """The plan as a table."""
    head = f"{'stage':10}{'units':>8}{'done':>8}{'CPU s each':>13}{'CPU s left':>13}"
    numbers = [["-" if row[name] is None else f"{row[name]:.1f}" for name in _SECONDS] for row in plan]
    return [head] + [
        f"{row['stage']:10}{row['units']:>8}{row['done']:>8}{each:>13}{remaining:>13}"
        for row, (each, remaining) in zip(plan, numbers, strict=True)
    ]
