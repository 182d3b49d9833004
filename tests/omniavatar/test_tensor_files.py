import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omniavatar.tensor_files import CheckpointError, build_empty, check_tensors, fill_module, read_tensors


def test_empty_modules_have_real_buffers() -> None:
    module = build_empty(lambda: torch.nn.BatchNorm1d(3))
    assert module.weight.is_meta and not module.running_mean.is_meta


def test_every_difference_is_listed() -> None:
    expected = {"a": torch.Size([2]), "b": torch.Size([2]), "c": torch.Size([2])}
    given = {"a": torch.zeros(3), "b": torch.tensor([0.0, float("inf")]), "d": torch.zeros(1)}
    kinds = {problem.split(":")[0] for problem in check_tensors(expected, given)}
    assert kinds == {"missing", "shape", "broken", "unexpected"}


def test_a_module_is_filled_in_the_type_asked_for() -> None:
    module = build_empty(lambda: torch.nn.Linear(2, 2))
    state = {"weight": torch.eye(2, dtype=torch.float16), "bias": torch.zeros(2)}
    fill_module(module, state.items(), "here", lambda name: torch.bfloat16 if name == "weight" else torch.float32)
    assert (module.weight.dtype, module.bias.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(module.weight.float(), torch.eye(2))


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(FileNotFoundError, match="found 2 of them and no index"):
        list(read_tensors(tmp_path))
    index = {"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {name for name, _ in read_tensors(tmp_path)} == {"a", "b"}
    (tmp_path / "y.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the shards y.safetensors"):
        list(read_tensors(tmp_path))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pth"])
def test_a_cut_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith("pth"):
        torch.save({"a": torch.randn(1000)}, file)
    else:
        save_file({"a": torch.randn(1000)}, file)
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match=f"{name} cannot be used"):
        list(read_tensors(file))


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        list(read_tensors(tmp_path / "list.pt"))
    torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "mixed.pt")
    with pytest.raises(CheckpointError, match="step: a int, not a tensor"):
        list(read_tensors(tmp_path / "mixed.pt"))
