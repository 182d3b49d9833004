import math

import pytest
import torch

from common.errors import InputError
from omniavatar.config import GENERATION_ROLES
from pipelines.rehearse.shapes import files_of, published_sizes, sizes_of


def tensors_of(role, base):
    """Number of tensors, of values and of weight files."""
    files = [file for file in files_of(role, published_sizes(base)) if file.tensors]
    values = sum(math.prod(shape) for file in files for shape, _ in file.tensors.values())
    return sum(len(file.tensors) for file in files), values, len(files)


def test_transformers_and_adapters_have_the_published_tensors():
    assert tensors_of("transformer", "wan2.1-t2v-1.3b") == (825, 1_418_996_800, 1)
    assert tensors_of("transformer", "wan2.1-t2v-14b") == (1095, 14_288_491_584, 6)
    assert tensors_of("adapter", "wan2.1-t2v-1.3b") == (634, 177_271_392, 1)


def test_encoders_have_the_published_files():
    found = {
        file.path: file for role in GENERATION_ROLES for file in files_of(role, published_sizes("wan2.1-t2v-1.3b"))
    }
    umt5, vae = found["models_t5_umt5-xxl-enc-bf16.pth"], found["Wan2.1_VAE.pth"]
    assert len(umt5.tensors) == 242 and umt5.bytes == 11_361_820_672
    assert {dtype for _, dtype in umt5.tensors.values()} == {torch.bfloat16}
    assert len(vae.tensors) == 194 and vae.bytes == 4 * 126_892_531
    # 18.7 GB are to be fetched for generation.
    assert sum(file.bytes for file in found.values()) == pytest.approx(18.65e9, rel=0.01)


def test_a_transformer_that_is_there_gives_the_sizes(tmp_path):
    config = files_of("transformer", published_sizes("wan2.1-t2v-14b").shallower(8, 4))[0]
    (tmp_path / config.path).write_text(config.text)
    found = sizes_of(tmp_path)
    assert (found.width, found.heads, found.ffn, found.layers) == (5120, 40, 13_824, 8)


def test_an_unknown_base_is_named():
    with pytest.raises(InputError, match=r"'wan9'.*wan2.1-t2v-14b, wan2.1-t2v-1.3b"):
        published_sizes("wan9")
