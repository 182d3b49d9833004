"""People and voices: from attributes, folders and prompts, held-out ones apart; of what is drawn only what is seen and
heard."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import wavfile

from common.errors import InputError
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from omniavatar.config import GenerateConfig
from training.audioavatar import people
from training.audioavatar.config import PeopleConfig, VoicesConfig
from training.audioavatar.people import find_person, held_out_voices, people_names, training_voices, voice_wave


def test_attributes_decide_who_is_drawn_and_the_prompt_says_so() -> None:
    config = PeopleConfig(train=4, attributes={"hair_style": ("bald",), "glasses": ("yes",)})
    names = people_names(config, 2)
    assert len(set(names)) == 6
    found = [find_person(name, config, 0, {}) for name in names]
    assert all("a bald head, glasses" in person.prompt for person in found)
    assert len({person.image.tobytes() for person in found}) == 6
    with pytest.raises(InputError, match="hair_style: mohawk.*short"):
        find_person(names[0], PeopleConfig(attributes={"hair_style": ("mohawk",)}), 0, {})


def test_pictures_and_voices_of_folders_with_the_last_ones_held_out(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((32, 32, 3), ord(name), np.uint8)).save(tmp_path / f"{name}.png")
        wavfile.write(tmp_path / f"{name}.wav", 16_000, np.full(16_000, ord(name), np.int16))
    pictures = PeopleConfig(source="folder", folder=str(tmp_path), train=2)
    assert people_names(pictures, 1) == ["a", "b", "c"]
    assert find_person("b", pictures, 0, {}).image[0, 0, 0] == ord("b")
    voices = VoicesConfig(source="folder", folder=str(tmp_path), each=2, seconds=0.4)
    training = training_voices(voices, 2, 1)
    assert [voice.name for voice in training] == ["a-000", "b-000", "a-001", "b-001"]
    assert [voice.name for voice in held_out_voices(voices, 1)] == ["c-000"]
    assert len(voice_wave(training[3], voices)) == 6400
    with pytest.raises(InputError, match="3 pictures; expected 4"):
        people_names(pictures, 2)
    with pytest.raises(InputError, match="ends before piece 3"):
        voice_wave(training_voices(voices, 3, 1)[4], voices)


def test_the_plain_base_draws_a_person_from_a_prompt() -> None:
    portrait = GenerateConfig(steps=1, longest_side=64, portrait_frames=5)
    config = PeopleConfig("prompts", 1, "", "a {age} face", {"age": ("young", "old")}, portrait)
    (name,) = people_names(config, 0)
    person = find_person(name, config, 0, model_paths())
    assert person.image.shape == (64, 64, 3) and person.prompt in ("a young face", "a old face")
    with pytest.raises(InputError, match="names 'age'; the attributes are none"):
        find_person(name, PeopleConfig("prompts", 1, "", "a {age} face"), 0, {})


def test_of_what_is_drawn_only_the_sound_is_taken_for_a_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlySound:
        def __init__(self, seed: int, seconds: float) -> None:
            self.audio = draw_clip(seed, seconds).audio

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"training looked at the drawn {name}")

    monkeypatch.setattr(people, "draw_clip", OnlySound)
    voices = VoicesConfig(seconds=0.2)
    assert len(voice_wave(training_voices(voices, 1, 1)[0], voices)) == 3200
    names = {name for name in vars(people) if name in ("draw_clip", "render", "draw_motion", "silence")}
    assert names == {"draw_clip", "render", "draw_motion", "silence"}
