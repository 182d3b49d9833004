"""Settings of the second system's training: whom it learns from, and those of its stages. Imports no torch."""

from dataclasses import dataclass, field
from typing import Literal

from audioavatar.config import (
    Driver,
    EmbeddingConfig,
    FitConfig,
    GeneratorConfig,
    JointConfig,
    RefinementConfig,
    ReliefConfig,
    TeacherConfig,
)
from common.errors import InputError
from common.ranges import Count, Positive
from omniavatar.config import GENERATION_ROLES, GenerateConfig

LOG = "train-avatar.jsonl"  # in the logs of a run: a line per unit, and losses
# Files of a run that networks are trained into; the last holds all that a talk needs.
EMBEDDING, GENERATOR, REFINER = "embedding.safetensors", "generator.safetensors", "refiner.safetensors"
MOTION = "motion.safetensors"
TEACHER_ROLES = (*GENERATION_ROLES, "face_detector")
SCORE_ROLES = ("audio_encoder", "face_detector", "sync_scorer", *GENERATION_ROLES)


@dataclass(frozen=True)
class PeopleConfig:
    """Who is animated, `train` people and after them as many held-out ones as are scored.

    `drawn`: by the small world; `folder`: its pictures, sorted by name; `prompts`: by the plain base, from `template`
    filled in with `attributes` and with the settings `portrait`. Each person takes one of the choices of every
    attribute, at random.
    """

    source: Literal["drawn", "folder", "prompts"] = "drawn"
    train: Count = 6
    folder: str = ""
    template: str = ""
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    portrait: GenerateConfig = GenerateConfig()

    def __post_init__(self) -> None:
        if self.source == "folder" and not self.folder:
            raise InputError("avatar.people.source is folder, but avatar.people.folder names none; give its path.")
        if self.source == "prompts" and not self.template:
            raise InputError("avatar.people.source is prompts, but avatar.people.template is empty; give a prompt.")


@dataclass(frozen=True)
class VoicesConfig:
    """What they say: `each` clips per person of `seconds`, every one with words of its own.

    `drawn`: the small world's synthesiser; `folder`: pieces of its sound files, sorted by name, of which the last ones
    are held out.
    """

    source: Literal["drawn", "folder"] = "drawn"
    folder: str = ""
    each: Count = 4
    seconds: Positive = 1.92

    def __post_init__(self) -> None:
        if self.source == "folder" and not self.folder:
            raise InputError("avatar.voices.source is folder, but avatar.voices.folder names none; give its path.")


@dataclass(frozen=True)
class ScoreConfig:
    """Every person trained on and `people` held-out ones say `voices` held-out voices."""

    people: int = 6
    voices: Count = 4


def _teachers() -> dict[str, TeacherConfig]:
    return {"omniavatar": TeacherConfig()}


@dataclass(frozen=True)
class AvatarTrainConfig:
    """Training of the second system. `teachers` (name -> its settings) take the clips in turn: `omniavatar`, and
    `drawn`, the small world's drawer, which has no settings.

    `gesture_teachers` are those whose head, brows and hands follow the voice, none: all of them; the clips of others
    take gestures from a regression on theirs. `space` is where the mouth's motion is generated: principal `components`
    of the fits, or the joint `embedding`, which is trained in any case, as a judge that needs no other weights.
    Refinement and joint training with 0 steps are left out; regression (`driver` ridge or tcn) has neither. Joint
    training takes `joint_clips`, of all people in turn.
    """

    seed: int = 0
    people: PeopleConfig = PeopleConfig()
    voices: VoicesConfig = VoicesConfig()
    teachers: dict[str, TeacherConfig] = field(default_factory=_teachers)
    gesture_teachers: tuple[str, ...] = ()
    relief: ReliefConfig = ReliefConfig()
    fit: FitConfig = FitConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    space: Literal["components", "embedding"] = "components"
    driver: Driver = "generator"
    generator: GeneratorConfig = GeneratorConfig()
    refinement: RefinementConfig = RefinementConfig()
    joint: JointConfig = JointConfig()
    joint_clips: Count = 24
    score: ScoreConfig = ScoreConfig()

    def __post_init__(self) -> None:
        unknown = [name for name in self.gesture_teachers if name not in self.teachers]
        if unknown:
            raise InputError(
                f"avatar.gesture_teachers names {unknown[0]}; expected some of avatar.teachers: "
                f"{', '.join(self.teachers)}."
            )
