from pathlib import Path

import pytest

from common.errors import InputError
from pipelines.rehearse.depth import base_entry, choose_depth, networks_before, whole_sizes
from pipelines.rehearse.shapes import files_of, published_sizes
from tests.pipelines.rehearse.sizes import TINY

WHOLE = published_sizes("wan2.1-t2v-14b")


def test_the_base_is_known_from_the_folders_of_the_recipe():
    named = {"transformer": Path("weights/own"), "adapter": Path("weights/omniavatar-14b")}
    assert base_entry(named) == "wan2.1-t2v-14b"
    assert whole_sizes(named) == WHOLE
    with pytest.raises(InputError, match=r"weights/own, whose name is none of wan2\.1-t2v-14b"):
        base_entry({"transformer": Path("weights/own")})


def test_depth_is_what_fits_first_of_the_transformer_then_of_the_text_encoder():
    sizes = choose_depth(WHOLE, (), 0, lambda tried: "too much" * (10 * tried.layers + tried.text_layers > 137))
    assert (sizes.layers, sizes.text_layers) == (13, 7)
    assert choose_depth(WHOLE, (), 0, lambda tried: "") == WHOLE
    assert choose_depth(WHOLE, (), 6, lambda tried: "2 GB too much").layers == 6
    with pytest.raises(
        InputError, match="no room for 4 blocks of the transformer and 2 of the text encoder: 2 GB too much"
    ):
        choose_depth(WHOLE, (), 0, lambda tried: "2 GB too much")


def test_what_is_there_keeps_its_depth():
    assert choose_depth(WHOLE, ("adapter",), 4, lambda tried: "").layers == 40
    assert choose_depth(WHOLE, ("text_encoder",), 4, lambda tried: "").text_layers == 24


def test_networks_of_absent_weights_are_those_that_will_be_written():
    networks = networks_before(TINY, {})
    written = {role: files_of(role, TINY)[-1].bytes for role in ("vae", "text_encoder")}
    assert (4 * networks.vae.weights, 2 * networks.text.weights) == (written["vae"], written["text_encoder"])
    assert networks.transformer.layers == 4 and networks.audio.states == TINY.audio_dim
