import hashlib
from dataclasses import replace

import pytest

from omniavatar.config import PRESETS, GenerateConfig, preset


def test_the_preset_default_is_the_defaults() -> None:
    assert replace(GenerateConfig(), **preset("default")) == GenerateConfig()


def test_presets_are_the_published_procedures() -> None:
    official, paper = (replace(GenerateConfig(), **preset(name)) for name in ("official", "paper"))
    assert (official.steps, official.overlap, official.overlap_kind) == (50, 13, "pixel")
    assert (official.lead_in, official.keep_reference, official.shift, official.text_guidance) == (0.3, True, 5.0, 4.5)
    assert (paper.steps, paper.overlap_kind, paper.lead_in, paper.keep_reference) == (25, "latent", 0.0, False)
    assert {config.blend for config in (official, paper)} == {0}
    assert (official.full_last_chunk, paper.full_last_chunk) == (True, False)
    assert {config.colour_match for config in (official, paper)} == {"none"}
    assert (
        hashlib.sha256(official.negative_prompt.encode()).hexdigest().startswith("a7ff2737d38a5b08")
    )  # inference.yaml


def test_every_preset_fixes_the_same_settings() -> None:
    assert len({tuple(sorted(settings.keys() - {"negative_prompt"})) for settings in PRESETS.values()}) == 1
    with pytest.raises(ValueError, match="'offical'.*official"):
        preset("offical")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"guidance_from": 0.6, "guidance_to": 0.4}, "guidance_from=0.6"),
        ({"guidance_to": 1.5}, "guidance_to=1.5"),
        ({"lead_in": -0.1}, "lead_in is -0.1"),
        ({"overlap_kind": "latent"}, "colour_match=none"),
        ({"height": 64}, "width=0"),
        ({"portrait_frames": 4}, "4n"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GenerateConfig(**changes)
