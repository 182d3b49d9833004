from pathlib import Path

from pipelines.models.listing import entry_lines, licence_lines, miniature_warning, recipe_lines, role_lines
from pipelines.models.published import read_published
from pipelines.recipe import read_recipe
from pipelines.roles import MODEL_ROLES

PUBLISHED = read_published()


def test_every_role_is_listed_with_its_entries_and_what_a_recipe_has(tmp_path):
    plain = list(role_lines(PUBLISHED, None))
    assert len(plain) == len(MODEL_ROLES)
    assert ["fvd_features", "i3d-torchscript,", "i3d-pretrained-400"] in [line.split() for line in plain]
    named = dict.fromkeys(MODEL_ROLES) | {"vae": tmp_path, "pose": tmp_path / "nowhere"}
    text = "\n".join(role_lines(PUBLISHED, named))
    assert f"recipe has {tmp_path}\n" in text and "nowhere, which does not exist" in text
    assert text.count("has no weights") == len(MODEL_ROLES) - 2


def test_an_entry_says_who_how_large_what_it_forbids_and_where():
    text = "\n".join(entry_lines(PUBLISHED))
    assert all(name in text and what.publisher in text and what.source in text for name, what in PUBLISHED.items())
    assert "one-align, 16.4 GB" in text and "forbids commercial use" in text and "vae Wan2.1_VAE.pth" in text


def test_licences_are_stated_with_what_follows_from_them():
    shut, free = licence_lines({name: PUBLISHED[name] for name in ("insightface-buffalo-l", "wav2vec2-base-960h")})
    assert "it forbids commercial use" in shut and free.endswith("licence Apache-2.0.")


def test_what_was_fetched_is_stated_as_a_recipe_takes_it():
    lines = list(recipe_lines({"syncnet-v2": {"sync_scorer": Path("w/syncnet_v2.model")}}))
    assert lines == ["models:   # syncnet-v2", "  sync_scorer: w/syncnet_v2.model"]


def test_an_image_of_ones_own_with_the_tiny_models_gets_a_warning_that_says_what_real_videos_need():
    warning = miniature_warning(read_recipe("demo"), Path("face.png"))
    assert "face.png becomes a toy video" in warning
    assert "omniavatar-1.3b (18.7 GB to fetch, a GPU with room for 15.0 GB" in warning
    assert "omniavatar-14b (71.9 GB to fetch, a GPU with room for 41.0 GB" in warning
    assert "fetch wan2.1-t2v-1.3b omniavatar-1.3b wav2vec2-base-960h --to weights" in warning
    for own in (read_recipe("omniavatar-1.3b"), read_recipe("demo", ("models.transformer=weights/mine",))):
        assert miniature_warning(own, Path("face.png")) == ""
