import pytest

from common.recipe import RecipeError, dump_recipe, load_recipe
from miniature.weights import WEIGHT_PATHS, model_paths
from omniavatar.config import PUBLISHED_NEGATIVE_PROMPT
from perception.packaged import packaged_weights
from pipelines.recipe import RECIPES, Recipe, read_recipe
from pipelines.roles import MODEL_ROLES


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_is_read_and_written_back_the_same(name, tmp_path):
    recipe = read_recipe(name)
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml", Recipe) == recipe


def test_the_demo_finds_every_shipped_model_and_knows_every_role():
    paths = read_recipe("demo").model_paths()
    assert list(paths) == list(MODEL_ROLES) and set(WEIGHT_PATHS) <= set(MODEL_ROLES)
    carried = set(packaged_weights()) - {"text_detector"}  # which the recipe takes away
    assert {role for role, path in paths.items() if path and path.exists()} == set(WEIGHT_PATHS) | carried
    assert all(paths[role] == path for role, path in model_paths().items())


def test_the_folder_recipe_needs_no_weights():
    paths = {role: path for role, path in read_recipe("folder").model_paths().items() if path}
    assert paths == packaged_weights()


def test_an_override_wins_and_a_wrong_key_names_the_nearest():
    assert read_recipe("demo", ("train.steps=3",)).train.steps == 3
    with pytest.raises(RecipeError, match="steps"):
        read_recipe("demo", ("train.stepz=3",))


def test_wrong_roles_and_paths_are_named():
    with pytest.raises(ValueError, match="models.syncnet is no role"):
        read_recipe("folder", ("models.syncnet=x",)).model_paths()
    with pytest.raises(FileNotFoundError, match="models.vae is nowhere"):
        read_recipe("folder", ("models.vae=nowhere",)).model_paths()
    assert str(read_recipe("folder", ("models.vae=nowhere",)).named_models()["vae"]) == "nowhere"


@pytest.mark.parametrize("nothing", ["models.adapter=", 'models.adapter=""', "models.adapter=null"])
def test_a_role_is_taken_away_by_an_empty_value(nothing, tmp_path):
    for name in ("omniavatar-1.3b", "demo"):
        recipe = read_recipe(name, (nothing,))
        assert recipe.named_models()["adapter"] is None and recipe.named_models()["vae"] is not None
        (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
        assert load_recipe(tmp_path / "again.yaml", Recipe) == recipe


@pytest.mark.parametrize("name", ["omniavatar-1.3b", "omniavatar-14b"])
def test_the_published_recipes_sample_and_train_as_their_weights_were_made(name):
    recipe = read_recipe(name)
    assert recipe.generate.negative_prompt == PUBLISHED_NEGATIVE_PROMPT
    # The two belong together: a model trained on exact timesteps and sampled with rounded ones is off, and vice versa.
    assert recipe.generate.load.round_timestep and recipe.train.model.round_timestep
    assert not (read_recipe("demo").generate.load.round_timestep or read_recipe("demo").train.model.round_timestep)


@pytest.mark.parametrize("name", ["../../x", "/tmp/x", "a/b", "..", ".hidden", "a\\b", "a\0b", "", "x" * 300])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ValueError, match="expected a plain name"):
        Recipe(name=name)
