import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from miniature.weights import model_paths
from omniavatar.weights.headers import Header, read_headers
from omniavatar.weights.tensor_files import read_tensors

KINDS = {torch.float32: "F32", torch.bfloat16: "BF16"}


@pytest.mark.parametrize("role", ["transformer", "vae", "text_encoder", "adapter", "audio_encoder"])
def test_headers_are_those_that_torch_reads(role: str) -> None:
    path = model_paths()[role]
    path = path / "pytorch_model.pt" if role == "adapter" else path
    expected = {name: Header(KINDS[value.dtype], tuple(value.shape)) for name, value in read_tensors(path, "meta")}
    assert read_headers(path) == expected


def test_files_of_original_layouts_are_read_through_their_wrapping(tmp_path: Path) -> None:
    state = torch.nn.Linear(3, 2).state_dict()  # an OrderedDict with attributes
    torch.save({"model_state": state}, tmp_path / "a.pth")
    assert read_headers(tmp_path / "a.pth") == {"weight": Header("F32", (2, 3)), "bias": Header("F32", (2,))}


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of the file ran",)


def test_code_is_not_run_and_what_is_broken_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = io.BytesIO()
    pickle.dump({"weight": _Runs()}, stored)
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:
        archive.writestr("code/data.pkl", stored.getvalue())
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    save_file({"weight": torch.zeros(2, 2)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:20])
    for name in ("code.pt", "cut.pt", "cut.safetensors", "absent.pt"):
        assert read_headers(tmp_path / name) == {}
    assert "ran" not in capsys.readouterr().out
    assert read_headers(tmp_path) == {"weight": Header("F32", (2, 2))}
