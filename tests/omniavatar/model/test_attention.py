import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from omniavatar.model.attention import (
    NATIVE,
    AttentionShape,
    choose_attention,
    fastest,
    measure_kernels,
    remembered_kernel,
)
from omniavatar.model.transformer import AvatarTransformer


@torch.no_grad()
def output(model: AvatarTransformer) -> Tensor:
    torch.manual_seed(2)
    return model(torch.randn(1, 16, 2, 4, 4), torch.tensor([700.0]), torch.randn(1, 4, 24))


def kernels(model: AvatarTransformer) -> set[AttentionBackendName | None]:
    attentions = [attention for block in model.dit.blocks for attention in (block.attn1, block.attn2)]
    return {attention.processor._attention_backend for attention in attentions}


@pytest.mark.parametrize("name", ["auto", "native"])
def test_on_a_cpu_it_is_torchs_own(base: AvatarTransformer, name: str) -> None:
    before = output(base)
    assert choose_attention(base, name) == NATIVE
    assert torch.equal(output(base), before)


def test_a_kernel_asked_for_by_name_is_used_by_this_model_alone(
    base: AvatarTransformer, other_base: AvatarTransformer
) -> None:
    expected = output(base)
    assert choose_attention(base, "_native_math") == "_native_math"
    assert kernels(base) == {AttentionBackendName._NATIVE_MATH}
    assert torch.allclose(output(base), expected, atol=1e-5)
    assert _AttentionBackendRegistry.get_active_backend()[0] == NATIVE
    assert kernels(other_base) == {None}
    assert choose_attention(base) == NATIVE
    assert torch.equal(output(base), expected)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sage", "install `sageattention>="),
        ("flash", "install `flash-attn>="),
        ("_flash_3", "build FA3"),
        ("_native_cudnn", "No viable backend"),  # torch has it, a CPU has not
        ("flesh", "expected one of flash, "),
        ("flash_hub", "expected one of flash, "),  # would be fetched, and run, from a hub
    ],
)
def test_what_cannot_run_here_is_refused_before_any_work(base: AvatarTransformer, name: str, reason: str) -> None:
    base.requires_grad_(False)
    with pytest.raises(ValueError, match=f"Attention '{name}' cannot be used: .*{reason}"):
        choose_attention(base, name)
    assert kernels(base) == {None}


def test_a_model_in_training_keeps_to_kernels_with_a_backward_pass(base: AvatarTransformer) -> None:
    with pytest.raises(ValueError, match="'flash' cannot be used: the model has weights to train"):
        choose_attention(base, "flash")


SHAPE = AttentionShape(2, 16, 50, torch.float32, torch.device("cpu"))
OTHER = "_native_flash"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "attention.json"


def test_what_was_measured_once_is_kept_whatever_a_second_measurement_would_say(
    base: AvatarTransformer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = tmp_path / "omniavatar" / "attention.json"
    first = choose_attention(base, "measure", tokens=50)
    kernels = json.loads(file.read_text())["kernels"]
    (key,) = kernels
    assert kernels[key] == first and key.startswith("2 heads of 16, 64 tokens, float32, forward and backward, cpu")
    for slower in (NATIVE, OTHER):
        file.write_text(json.dumps({"version": 1, "kernels": {key: slower}}))
        assert choose_attention(base, "measure", tokens=64) == slower
    assert kernels_of_file(file) == {key: OTHER}
    choose_attention(base, "measure", tokens=65)
    assert len(kernels_of_file(file)) == 2


def kernels_of_file(file: Path) -> dict[str, str]:
    return json.loads(file.read_text())["kernels"]


@pytest.mark.parametrize(
    "content", ['{"version": 1, "kern', "[1]", '{"version": 2, "kernels": {}}', '{"version": 1, "kernels": {"a": 7}}']
)
def test_a_torn_or_foreign_file_is_measured_again_with_a_warning(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(content)
    chosen = remembered_kernel(SHAPE, file)
    assert f"{file} is ignored and replaced" in caplog.text
    assert kernels_of_file(file) == {SHAPE.key: chosen}


def test_a_kernel_remembered_but_not_here_is_measured_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(json.dumps({"version": 1, "kernels": {SHAPE.key: "flash", "another shape": "flash"}}))
    caplog.set_level(logging.INFO)
    chosen = remembered_kernel(SHAPE, file)
    assert chosen in (NATIVE, OTHER) and "attention measured for 2 heads of 16" in caplog.text
    assert kernels_of_file(file) == {SHAPE.key: chosen, "another shape": "flash"}


def test_where_nothing_can_be_remembered_nothing_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert remembered_kernel(SHAPE, tmp_path / "file" / "attention.json") == NATIVE
    assert "attention is not measured, native is taken" in caplog.text


def test_of_equally_fast_kernels_the_first_is_taken() -> None:
    assert fastest({"a": 1.02, "b": 1.0, "c": 1.01}) == "a"
    assert fastest({"a": 1.04, "b": 1.02, "c": 1.0}) == "b"


def test_kernels_are_measured_with_their_backward_pass_where_a_model_trains() -> None:
    names = [NATIVE, OTHER, "_native_cudnn"]  # the last cannot run on a CPU
    for shape in (SHAPE, replace(SHAPE, backward=True)):
        assert list(measure_kernels(shape, names)) == names[:2]
    keys = {replace(SHAPE, **change).key for change in ({}, {"backward": True}, {"heads": 3}, {"tokens": 300})}
    assert len(keys) == 4
