"""The small world's drawer as a teacher: the people whom it drew, filmed while they say the voices that it drew.

Unlike the small video model it moves head, brows and hands with stress, and blinks. It is a source of clips alone:
there is no network behind it, so it has no `encode` and no `predict`, and nothing can be distilled from it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.errors import InputError
from miniature.world.clips import Performance, perform
from miniature.world.figure import Motion
from training.audioavatar.config import AvatarTrainConfig
from training.audioavatar.people import DrawnPerson, drawn_person, held_out_voices, people_names, training_voices


class DrawnTeacher:
    """Knows the people and the voices of a recipe again by their very pictures and sounds."""

    def __init__(self, people: Mapping[bytes, DrawnPerson], voices: Mapping[bytes, Performance]) -> None:
        self._people, self._voices = people, voices

    @classmethod
    def from_recipe(cls, weights: Mapping[str, Path], recipe: AvatarTrainConfig, name: str) -> "DrawnTeacher":
        """Draw everybody of a recipe, and their voices; weights are not used. Raises InputError for a recipe that takes
        people or voices from elsewhere."""
        for section, source in (("people", recipe.people.source), ("voices", recipe.voices.source)):
            if source != "drawn":
                raise InputError(
                    f"avatar.teachers names {name}, which films drawn people with drawn voices, but avatar.{section}."
                    f"source is {source}; set it to drawn, or name another teacher."
                )
        names = people_names(recipe.people, recipe.score.people)
        people = [drawn_person(each, recipe.people, recipe.seed) for each in names]
        voices = [
            *training_voices(recipe.voices, recipe.people.train, recipe.score.voices),
            *held_out_voices(recipe.voices, recipe.score.voices),
        ]
        performances = [perform(voice.number, recipe.voices.seconds) for voice in voices]
        return cls(
            {each.person.image.tobytes(): each for each in people},
            {each.speech.audio.tobytes(): each for each in performances},
        )

    def generate(self, image: np.ndarray, audio: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        """As of ClipTeacher: the picture and the audio decide alone. Raises InputError for a picture or an audio that
        are not of the recipe."""
        person, performance = self._people.get(image.tobytes()), self._voices.get(audio.tobytes())
        if person is None or performance is None:
            raise InputError(
                f"The teacher drawn does not know {'the picture' if person is None else 'the voice'}; it films people "
                "and voices of its recipe only, with the bytes they were drawn with."
            )
        return person.film(_begun_at(person.pose, performance.motion), performance.speech.lips)

    def settings(self) -> dict[str, object]:
        """As of ClipTeacher."""
        return {"teacher": "drawn"}


def _begun_at(pose: Motion, motion: Motion) -> Motion:
    """The motion with the head where the portrait has it in the first frame, as every teacher's clips begin."""
    head = {name: getattr(motion, name) - getattr(motion, name)[0] + getattr(pose, name) for name in ("x", "y", "tilt")}
    return Motion(**head, blink=motion.blink, brow=motion.brow, hands=motion.hands)
