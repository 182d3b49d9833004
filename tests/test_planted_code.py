"""Code planted in a folder of weights never runs."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import InputError, UserError
from miniature.weights import model_paths
from omniavatar.encoders.text import load_tokenizer
from perception.captions import CaptionerError, load_captioner
from perception.features.nets import FeatureError, load_feature_net
from pipelines.models.loaders import LOADERS
from tests.random_captioner import write_captioner
from training.engine.pickles import ForeignStateError, refuse_code

AUTO = ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor")


def plant(folder: Path, files: tuple[str, ...]) -> Path:
    """Make the files of a folder ask for classes of a module in it; returns the file that the module would write."""
    marker = folder.parent / "ran"
    (folder / "planted.py").write_text(f"open({str(marker)!r}, 'w').close()\nfrom transformers import *\n")
    for name in files:
        config = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        config = {key: value for key, value in config.items() if not key.endswith("_class")}
        own = dict.fromkeys(AUTO, "planted.Own") | {"AutoTokenizer": ["planted.Own", "planted.Own"]}
        model_type = {"model_type": "planted"} if name == "config.json" else {}
        (folder / name).write_text(json.dumps(config | model_type | {"auto_map": own}))
    return marker


@pytest.fixture
def says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal at which every question is answered with y."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


def load_any(role: str) -> Callable[[Path], Any]:
    return lambda path: LOADERS[role](path, {})


@pytest.mark.usefixtures("says_yes")
@pytest.mark.parametrize("load", [load_tokenizer, load_any("tokenizer")])
def test_a_tokenizer_with_code_is_refused_in_a_sentence(load: Callable[[Path], Any], tmp_path: Path) -> None:
    shutil.copytree(model_paths()["tokenizer"], folder := tmp_path / "tokenizer")
    marker = plant(folder, ("tokenizer_config.json", "config.json"))
    with pytest.raises(InputError, match=r"code of its own, planted\.py, which is never run") as caught:
        load(folder)
    assert not marker.exists() and "\n" not in str(caught.value)


@pytest.mark.usefixtures("says_yes")
@pytest.mark.parametrize("load", [load_captioner, load_any("captioner")])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "processor_config.json"])
def test_a_captioner_with_code_is_refused_in_a_sentence(load: Callable[[Path], Any], file: str, tmp_path: Path) -> None:
    folder = write_captioner(tmp_path / "captioner")
    marker = plant(folder, (file, "config.json"))
    with pytest.raises(UserError, match=r"code of its own, planted\.py, which is never run") as caught:
        load(folder)
    assert not marker.exists() and "\n" not in str(caught.value)


@pytest.mark.usefixtures("says_yes")
def test_a_captioner_does_not_generate_or_render_by_code_of_its_folder(tmp_path: Path) -> None:
    folder, marker = write_captioner(tmp_path / "captioner"), tmp_path / "ran"
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(f"open({str(marker)!r}, 'w').close()")
    frames = [np.zeros((32, 48, 3), np.uint8)]
    assert isinstance(load_captioner(folder).describe(frames, "a person", 2), str)
    assert not marker.exists()
    escape = "{{ messages.__class__.__base__.__subclasses__() }}<image>"
    captioner = load_captioner(folder)
    captioner.processor.chat_template = escape
    with pytest.raises((CaptionerError, UserError), match="chat template"):
        captioner.describe(frames, "a person", 2)


class Writes:
    """A pickle that writes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    "role", ["transformer", "vae", "text_encoder", "sync_scorer", "active_speaker", "fid_features"]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol", "ignore:.torch.load. received:UserWarning")
@pytest.mark.parametrize("protocol", [2, 4])
def test_weights_with_a_pickle_are_refused(role: str, protocol: int, tmp_path: Path) -> None:
    torch.save({"weight": Writes(tmp_path / "ran")}, tmp_path / "weights.pth", pickle_protocol=protocol)
    with pytest.raises(UserError, match="weights.pth"):
        load_any(role)(tmp_path / "weights.pth")
    assert not (tmp_path / "ran").exists()


class _Saves(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        torch.save(pixels, "ran")
        return pixels


class _Maps(torch.nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels + torch.from_file("ran", True, 1)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("net", "operator"), [(_Saves, "save"), (_Maps, "from_file")])
def test_a_scripted_net_that_touches_files_is_refused(net: type, operator: str, tmp_path: Path) -> None:
    torch.jit.script(net()).save(tmp_path / "net.pt")
    with pytest.raises(FeatureError, match=f"uses '{operator}'"):
        load_feature_net(tmp_path / "net.pt")


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_training_state_with_code_is_refused(protocol: int, tmp_path: Path) -> None:
    state = tmp_path / "step-1"
    state.mkdir()
    torch.save({"step": torch.ones(2), "optimizer": {"lr": 1.0}}, state / "good_states.pt")
    refuse_code(state)
    torch.save({"step": Writes(tmp_path / "ran")}, state / "optim_states.pt", pickle_protocol=protocol)
    with pytest.raises(ForeignStateError, match=r"optim_states\.pt"):
        refuse_code(state)
    (state / "optim_states.pt").write_bytes(pickle.dumps(Writes(tmp_path / "ran"), protocol))
    with pytest.raises(ForeignStateError, match="pickle"):
        refuse_code(state)
    assert not (tmp_path / "ran").exists()


def test_the_shipped_scripted_nets_touch_no_file() -> None:
    for role in ("fid_features", "fvd_features"):
        assert zipfile.is_zipfile(model_paths()[role])
        load_feature_net(model_paths()[role])
