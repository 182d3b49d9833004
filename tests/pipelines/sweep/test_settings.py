"""A sweep resolves to recipes, and a training goes by what it depends on, no more and no less."""

from dataclasses import replace

import pytest

from common.errors import InputError
from common.recipe import RecipeError
from pipelines.sweep.settings import SWEEPS, Places, RowConfig, SweepConfig, cell_of, cells, read_sweep

ROWS = {
    "ours": RowConfig(knobs={"guidance": 2.5}),
    "rank": RowConfig(set={"train": {"model": {"lora_rank": 8}}}),
    "guidance": RowConfig(set={"generate": {"audio_guidance": 4.0}}),
    "official": RowConfig(long=4.0, preset="official"),
    "small_base": RowConfig(network={"num_layers": 4}, set={"train": {"model": {"variant": "base", "init": "random"}}}),
    "small": RowConfig(transformer_of="small_base"),
}
CONFIG = SweepConfig("s", "lips", "ours", ROWS, seeds=(0, 1))


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def test_rows_that_sample_otherwise_share_a_training_and_seeds_do_not(places):
    ours, sampled, trained, long = (cell_of(CONFIG, row, 0, places) for row in ("ours", "guidance", "rank", "official"))
    assert ours.training == sampled.training == long.training != trained.training
    assert len({cell.data for cell in (ours, sampled, trained, long)}) == 1
    again = cell_of(CONFIG, "ours", 1, places)
    assert again.training != ours.training and again.data == ours.data
    # The same noise in every row of a seed, another in every seed.
    assert trained.recipe.generate.seed == ours.recipe.generate.seed == again.recipe.generate.seed - 1
    assert (again.recipe.train.seed, sampled.recipe.generate.audio_guidance) == (1, 4.0)


def test_a_preset_is_under_what_the_row_sets(places):
    assert cell_of(CONFIG, "official", 0, places).recipe.generate.steps == 50
    rows = ROWS | {"official": replace(ROWS["official"], set={"generate": {"steps": 2}})}
    found = cell_of(replace(CONFIG, rows=rows), "official", 0, places).recipe.generate
    assert (found.steps, found.keep_reference, found.colour_match) == (2, True, "none")


def test_a_small_model_is_a_base_of_its_own_trained_first(places):
    every = cells(CONFIG, places)
    assert [cell.row for cell in every[:2]] == ["small_base", "small_base"] and len(every) == 12
    base, small = (cell_of(CONFIG, row, 1, places) for row in ("small_base", "small"))
    assert small.recipe.models["transformer"] == str(places.training(base.training) / "checkpoints" / "base")
    larger = ROWS | {"small_base": replace(ROWS["small_base"], network={"num_layers": 5})}
    assert cell_of(replace(CONFIG, rows=larger), "small", 1, places).training != small.training


def test_new_data_mean_new_trainings(places):
    more = cell_of(replace(CONFIG, set={"drawn": {"train": 7}}), "ours", 0, places)
    before = cell_of(CONFIG, "ours", 0, places)
    assert more.data != before.data and more.training != before.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base": "our"}, "base is 'our'; expected one of the rows ours, "),
        ({"base": "official"}, "whose long is 4.0"),
        ({"seeds": (0, 0)}, r"seeds is \[0, 0\]"),
        ({"rows": ROWS | {"small": RowConfig(transformer_of="large")}}, "transformer_of is 'large'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_a_wrong_setting_names_its_row(places):
    rows = ROWS | {"rank": RowConfig(set={"train": {"model": {"lora_rnk": 8}}})}
    with pytest.raises(RecipeError, match="Row 'rank' of sweep 's'.*lora_rank"):
        cell_of(replace(CONFIG, rows=rows), "rank", 0, places)


@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_every_shipped_sweep_resolves(name, places):
    config = read_sweep(name)
    found = cells(config, places)
    assert len(config.seeds) >= 3 and len(found) == len(config.seeds) * len(config.rows)


@pytest.mark.parametrize("row", ["../up", "/tmp/x", "a/b", "..", ".", "", "a\x1b[31m", "a\nb", "a" * 81, "C:x", "<b>"])
def test_a_row_is_named_as_its_folder(row):
    with pytest.raises(InputError, match="cannot be a folder"):
        replace(CONFIG, rows=ROWS | {row: RowConfig()})


@pytest.mark.parametrize(("change", "said"), [({"name": "a\x1b[2J"}, "of one line"), ({"name": "a\nb"}, "of one line")])
def test_a_sweep_has_a_printable_name(change, said):
    with pytest.raises(InputError, match=said):
        replace(CONFIG, **change)
    with pytest.raises(InputError, match="only in case"):
        replace(CONFIG, rows=ROWS | {"OURS": RowConfig()})
