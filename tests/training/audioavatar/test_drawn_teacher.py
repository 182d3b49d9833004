"""The drawn teacher films the people and voices of its recipe, moving as the drawer says, and nobody else."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import InputError
from miniature.world.clips import draw_clip, perform
from training.audioavatar.config import AvatarTrainConfig, PeopleConfig, ScoreConfig, VoicesConfig
from training.audioavatar.people import drawn_person, held_out_voices, people_names, training_voices, voice_wave
from training.audioavatar.teach import load_teacher

RECIPE = AvatarTrainConfig(
    people=PeopleConfig(train=1), voices=VoicesConfig(each=2, seconds=1.2), score=ScoreConfig(people=1, voices=1)
)


@pytest.mark.parametrize("framing", ["face", "half"])
def test_it_films_everybody_of_the_recipe_from_the_portrait_on(framing: str) -> None:
    recipe = replace(RECIPE, people=PeopleConfig(train=1, attributes={"framing": (framing,)}))
    teacher = load_teacher("drawn", {}, recipe)
    voices = [*training_voices(recipe.voices, 1, 1), *held_out_voices(recipe.voices, 1)]
    for name in people_names(recipe.people, 1):
        image = drawn_person(name, recipe.people, recipe.seed).person.image
        for voice in voices:
            frames = teacher.generate(image, voice_wave(voice, recipe.voices), "", 0)
            assert frames.shape == (30, *image.shape) and frames.dtype == np.uint8
            # It begins as the picture, and goes on otherwise.
            first, later = (np.abs(frames[t].astype(int) - image).mean() for t in (0, 20))
            assert first < 1 < later


def test_what_it_shows_is_what_is_true_of_the_voice() -> None:
    person = drawn_person("1000000", RECIPE.people, 0)
    voice = training_voices(RECIPE.voices, 1, 1)[0]
    frames = load_teacher("drawn", {}, RECIPE).generate(person.person.image, voice_wave(voice, RECIPE.voices), "", 0)
    said = perform(voice.number, RECIPE.voices.seconds)
    # A red opening mouth changes the rows below the nose in the measure of the drawn opening.
    dark = (frames[:, 36:52, 20:44].astype(int).sum(-1) < 120).sum((1, 2))
    assert np.corrcoef(dark, said.speech.lips[:, 0])[0, 1] > 0.7
    assert np.array_equal(said.speech.audio, draw_clip(voice.number, RECIPE.voices.seconds).audio)


def test_of_what_it_did_not_draw_it_makes_nothing() -> None:
    teacher = load_teacher("drawn", {}, RECIPE)
    image = drawn_person("1000000", RECIPE.people, 0).person.image
    wave = voice_wave(training_voices(RECIPE.voices, 1, 1)[0], RECIPE.voices)
    with pytest.raises(InputError, match="does not know the picture"):
        teacher.generate(image[::-1].copy(), wave, "", 0)
    with pytest.raises(InputError, match="does not know the voice"):
        teacher.generate(image, 0.5 * wave, "", 0)
    with pytest.raises(InputError, match="people.source is folder; set it to drawn"):
        load_teacher("drawn", {}, replace(RECIPE, people=PeopleConfig(source="folder", folder="x")))
    with pytest.raises(InputError, match="the teachers are omniavatar, drawn"):
        load_teacher("someone", {}, RECIPE)
