import re

import pytest

from common.recipe import RecipeError
from pipelines.models.published import Published, choose, gigabytes, read_published
from pipelines.roles import MODEL_ROLES

PUBLISHED = read_published()


def test_every_role_but_the_scheduler_has_a_published_entry():
    served = {role for what in PUBLISHED.values() for role in what.roles}
    assert set(MODEL_ROLES) - served == {"scheduler"}


def test_sources_are_written_so_that_they_can_be_asked_for():
    for what in PUBLISHED.values():
        assert what.title and what.publisher and what.bytes > 1e6
        if what.hub:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", what.hub.repo)
        for source in what.urls:
            assert re.fullmatch(r"https?://\S+", source.url) and source.url.endswith(source.path)
            assert not source.unpack or set(what.roles.values()) - {"."} <= set(source.unpack)


def test_weights_that_forbid_or_do_not_say_need_consent():
    free = {name for name, what in PUBLISHED.items() if not what.consent}
    assert {"wan2.1-t2v-14b", "wav2vec2-base-960h", "inception-pytorch-fid"} <= free
    assert not free & {"insightface-buffalo-l", "one-align", "syncnet-v2", "i3d-torchscript", "dwpose"}
    assert "commercial" in PUBLISHED["insightface-buffalo-l"].consent


def test_entries_and_roles_are_chosen_by_name():
    assert choose(["sync_scorer", "omniavatar-14b", "syncnet-v2"], PUBLISHED) == ["syncnet-v2", "omniavatar-14b"]
    with pytest.raises(ValueError, match=r"fid_features is a role with several entries: inception-pytorch-fid, "):
        choose(["fid_features"], PUBLISHED)
    with pytest.raises(ValueError, match="lips is neither an entry nor a role; the entries are wan2.1"):
        choose(["lips"], PUBLISHED)


def test_a_wrong_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="needs one of hub, urls and by_hand"):
        Published("x", "y", 1, {"vae": "."})
    (tmp_path / "list.yaml").write_text(
        "entries: {x: {title: x, publisher: y, bytes: 1, roles: {lips: a}, by_hand: z}}"
    )
    with pytest.raises(RecipeError, match="lips is no role"):
        read_published(tmp_path / "list.yaml")


def test_sizes_for_people():
    assert [gigabytes(size) for size in (69_000_000_000, 378_000_000, 3_500_000)] == ["69.0 GB", "0.4 GB", "3.5 MB"]
