"""Damage of checkpoints and exports: what is wrong, and how the training goes on."""

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from common.errors import DamagedFileError
from common.runs import write_json
from training.checkpoint_files import LATEST, PARTS, checkpoint_problem, export_problem, latest_checkpoint, write_parts

OLD, NEW = "step-00000002", "step-00000004"
MODEL, OPTIMIZER = "zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"


def write_zip(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data", file.name)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Two whole checkpoints of two ranks, the second the latest."""
    for name in (OLD, NEW):
        (tmp_path / name).mkdir()
        for rank in (0, 1):
            for kind in ("model", "optim"):
                write_zip(tmp_path / name / f"zero_pp_rank_{rank}_mp_rank_00_{kind}_states.pt")
        write_json(tmp_path / name / "format.json", {"version": 2})
        write_parts(tmp_path / name)
    (tmp_path / LATEST).write_text(NEW)
    return tmp_path


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_whole_ones_have_no_problem(state: Path) -> None:
    assert latest_checkpoint(state) == NEW and not checkpoint_problem(state / OLD)
    (state / LATEST).unlink()  # killed before it was written
    assert latest_checkpoint(state) == NEW


DAMAGES = {
    "latest is empty": lambda state: (state / LATEST).write_bytes(b""),
    "latest is garbage": lambda state: (state / LATEST).write_bytes(b"\xff\xfe\0\0"),
    "latest leads elsewhere": lambda state: (state / LATEST).write_text(f"../{state.name}/{OLD}"),
    "latest names what is gone": lambda state: (state / LATEST).write_text("step-00000009"),
    "a part is empty": lambda state: (state / NEW / MODEL).write_bytes(b""),
    "a part is cut short": lambda state: cut(state / NEW / OPTIMIZER),
    "a part is overwritten in its length": lambda state: (state / NEW / MODEL).write_bytes(
        bytes((state / NEW / MODEL).stat().st_size)
    ),
    "a part is gone": lambda state: (state / NEW / OPTIMIZER).unlink(),
    "the sizes are garbage": lambda state: (state / NEW / PARTS).write_bytes(b"{"),
    "the sizes are a list": lambda state: (state / NEW / PARTS).write_bytes(b"[1]"),
    "the version is empty": lambda state: (state / NEW / "format.json").write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_sentence_leads_to_an_older_checkpoint(state: Path, damage: str) -> None:
    DAMAGES[damage](state)
    with pytest.raises(DamagedFileError) as error:
        latest_checkpoint(state)
    assert str(state) in str(error.value)
    (remedy,) = re.findall(r"write (step-\d+) into (\S+) and run", str(error.value))
    Path(remedy[1]).write_text(remedy[0])
    assert latest_checkpoint(state) == remedy[0] == (NEW if damage.startswith("latest") else OLD)


def test_without_a_whole_one_the_training_starts_again_when_its_folder_is_deleted(state: Path) -> None:
    for name in (OLD, NEW):
        cut(state / name / MODEL)
    with pytest.raises(DamagedFileError, match=f"no older checkpoint is whole: delete {state} to start again"):
        latest_checkpoint(state)
    assert latest_checkpoint(state / "deleted") == ""


def test_a_folder_named_latest_is_deleted(state: Path) -> None:
    (state / LATEST).unlink()
    (state / LATEST).mkdir()
    with pytest.raises(DamagedFileError, match="latest is a folder, .*delete it"):
        latest_checkpoint(state)
    (state / LATEST).rmdir()
    assert latest_checkpoint(state) == NEW


def test_a_lost_rank_shows_without_recorded_sizes(state: Path) -> None:
    (state / NEW / PARTS).unlink()  # of older code
    assert not checkpoint_problem(state / NEW)
    (state / NEW / OPTIMIZER).unlink()
    assert checkpoint_problem(state / NEW) == "the optim state of rank 1 is missing"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    (folder / "diffusers").mkdir(parents=True)
    write_json(folder / "config.json", {"lora_rank": 4})
    write_zip(folder / "pytorch_model.pt")
    save_file({"a": np.zeros(100, np.float32)}, folder / "diffusers" / "lora.safetensors")
    return folder


def test_a_whole_export_has_no_problem(adapter: Path) -> None:
    assert export_problem(adapter) == ""


@pytest.mark.parametrize("content", [b"", b"garbage", "half", "folder", b"[1]"])
@pytest.mark.parametrize("name", ["config.json", "pytorch_model.pt", "diffusers/lora.safetensors"])
def test_a_damaged_export_is_named(adapter: Path, name: str, content: bytes | str) -> None:
    file = adapter / name
    whole = file.read_bytes()
    file.unlink()
    if content == "folder":
        file.mkdir()
    else:
        file.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    assert file.name in export_problem(adapter)


@pytest.mark.parametrize("length", [2**62, 8, 0])
def test_a_lying_header_is_noticed(adapter: Path, length: int) -> None:
    file = adapter / "diffusers" / "lora.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    assert "lora.safetensors" in export_problem(adapter)


def test_an_export_without_weights_is_noticed(adapter: Path, tmp_path: Path) -> None:
    assert export_problem(tmp_path / "none") == "it has no weights"
    (adapter / "config.json").unlink()
    assert export_problem(adapter) == "config.json is missing"
