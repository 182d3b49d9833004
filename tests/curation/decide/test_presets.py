"""Presets say what their sources say, can be changed, and can be extended by a recipe."""

from pathlib import Path

import pytest

from common.recipe import RecipeError
from curation.config import SelectConfig
from curation.decide.presets import PRESETS, read_preset
from curation.decide.select import select
from pipelines.recipe import read_recipe
from tests.curation.decide.test_select import GOOD

NAMES = sorted(file.stem for file in PRESETS.glob("*.yaml"))


def test_the_paper_is_the_default() -> None:
    assert NAMES == ["latentsync", "omniavatar", "strict"]
    assert read_preset("omniavatar") == SelectConfig()


def test_presets_differ_in_what_they_keep() -> None:
    clips = {
        "weak": GOOD | {"sync_c": 3.2, "iqa_1to5": 2.8},
        "short": GOOD | {"sync_c": 6.5, "duration": 3.2},
        "fine": GOOD | {"sync_c": 6.5},
        "plain": GOOD | {"sync_c": 6.5, "iqa_1to5": 2.8},
    }
    config = {name: read_preset(name, ("min_side=64", "min_face_px=16")) for name in NAMES}
    kept = {
        name: [
            clip
            for clip, fields in zip(clips, select(thresholds, list(clips.values())), strict=True)
            if fields["decision"] == "kept"
        ]
        for name, thresholds in config.items()
    }
    assert kept == {
        "latentsync": ["weak", "fine", "plain"],
        "omniavatar": ["short", "fine", "plain"],
        "strict": ["short", "fine"],
    }


def test_a_recipe_extends_a_preset_beside_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: [demo, latentsync]\nname: own\n")
    recipe = read_recipe(str(path))
    assert recipe.weights == "miniature" and recipe.curation.select.min_side == 64
    assert (recipe.curation.select.min_sync_c, recipe.curation.sync.max_correction) == (3.0, 6)
    assert recipe.curation.cut.max_seconds == 10.0


def test_a_wrong_name_or_threshold_is_told() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'strict'"):
        read_preset("strickt")
    with pytest.raises(RecipeError, match="did you mean 'curation.select.min_sync_c'"):
        read_preset("strict", ("min_sync=3",))
