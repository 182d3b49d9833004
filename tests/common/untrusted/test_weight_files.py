import builtins
import json
import math
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from common.untrusted.weight_files import (
    CheckpointError,
    check_config,
    layers,
    read_header,
    refuse_bomb,
    refuse_odd_tensors,
)

TWO = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = b"\0" * 8


def _safetensors(path, header, data=EIGHT, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def test_a_header_gives_the_shapes_that_the_library_wrote(tmp_path):
    tensors = {"a": np.zeros((2, 3), np.float16), "empty": np.zeros((0, 4), np.int64), "b": np.zeros((), np.float32)}
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert read_header(tmp_path / "w.safetensors") == {"a": (2, 3), "empty": (0, 4), "b": ()}


@pytest.mark.parametrize(
    ("header", "data", "length", "said"),
    [
        ({"a": TWO}, EIGHT, 2**60, "its header would have 1152921504606846976 bytes"),
        ({"a": TWO}, EIGHT, 2**64 - 1, "the file has"),
        ({"a": TWO}, b"", 10**6, "its header would have"),
        ({"a": TWO}, b"\0" * 4, None, "its tensors have 8 bytes, 4 follow"),
        ({"a": TWO}, b"\0" * 12, None, "its tensors have 8 bytes, 12 follow"),
        ({"a": TWO, "b": TWO}, EIGHT, None, "b lies at bytes 0 to 8, the one before it ends at 8"),
        ({"a": TWO | {"data_offsets": [8, 16]}}, b"\0" * 16, None, "a lies at bytes 8 to 16"),
        ({"a": TWO | {"data_offsets": [-8, 0]}}, EIGHT, None, "a lies at bytes -8 to 0"),
        ({"a": TWO | {"shape": [10**9, 10**9]}}, EIGHT, None, "has 8 bytes"),
        ({"a": TWO | {"shape": [2**63, 2**63, 4]}}, EIGHT, None, "has 8 bytes"),
        ({"a": TWO | {"shape": ["2"]}}, EIGHT, None, "a lies at"),
        ({"a": {"shape": [2]}}, EIGHT, None, "KeyError"),
        (b"[]", EIGHT, None, "TypeError"),
        (b"[" * 100_000, EIGHT, None, "RecursionError"),
        (b"\xff\xfe", EIGHT, None, "no table of tensors"),
    ],
)
def test_a_header_that_is_not_that_of_its_bytes_is_refused(tmp_path, header, data, length, said):
    with pytest.raises(CheckpointError, match="not a readable safetensors file") as error:
        read_header(_safetensors(tmp_path / "w.safetensors", header, data, length))
    assert said in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_file_without_a_header_is_refused(tmp_path, size):
    (tmp_path / "w.safetensors").write_bytes(b"\1" * size)
    with pytest.raises(CheckpointError, match=f"the file has {size}"):
        read_header(tmp_path / "w.safetensors")


class Call:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def _zip(path, entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_an_archive_that_unpacks_to_far_more_than_it_has_is_refused(tmp_path, monkeypatch):
    code = _zip(tmp_path / "code.pt", {"a/code/x.py": bytes(1_000_000)})
    refuse_bomb(code)
    monkeypatch.setattr("common.untrusted.weight_files.SLACK", 900_000)
    with pytest.raises(CheckpointError, match="would unpack to 1000000 bytes from"):
        refuse_bomb(code)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("call", [(bytearray, 2**40), (torch.Tensor, 10**6, 10**9)])
def test_a_pickle_that_takes_memory_by_a_number_alone_is_refused(tmp_path, old, call):
    content = {"a": torch.zeros(3), "b": Call(*call)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match="calls .*, which no file of weights does"):
        refuse_bomb(tmp_path / "w.pth")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_bare_pickle_is_read_for_its_names_alone(tmp_path, protocol):
    file = tmp_path / "w.pth"
    file.write_bytes(pickle.dumps({"a": Call(bytearray, 2**40)}, protocol))
    with pytest.raises(CheckpointError, match="calls"):
        refuse_bomb(file)
    file.write_bytes(pickle.dumps({"a": Call(os.mkdir, str(tmp_path / "ran"))}, protocol)[:-3])
    refuse_bomb(file)  # cut short: its reader says so
    assert not (tmp_path / "ran").exists() and builtins.bytearray is bytearray


@pytest.mark.parametrize("old", [False, True])
def test_a_file_of_tensors_passes(tmp_path, old):
    torch.save({"a": torch.zeros(3), "n": {"b": 1}}, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    refuse_bomb(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(10**6, 10**6),
        torch.empty(10**9, 10**3, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        3,
    ],
)
def test_tensors_of_more_numbers_than_their_bytes_are_refused(tensor):
    refuse_odd_tensors(Path("w.pth"), {"fine": torch.zeros(4)[1:]})
    with pytest.raises(CheckpointError, match="odd"):
        refuse_odd_tensors(Path("w.pth"), {"odd": tensor})


SHAPES = {"blocks.0.w": (64, 32), "blocks.1.w": (64, 32), "blocks.x.w": (1,), "blocks.99999999999.w": (1,)}
FITTING = {"num_layers": 2, "width": 64, "eps": 1e-6, "names": ["a"], "flag": True, "pad_token_id": -1}
SIZES, DEFAULTS = {"num_layers": layers(SHAPES, "blocks."), "width": 64, "unknown": None}, dict(FITTING)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_layers", 10**7, "num_layers is 10000000; the weights have 2"),
        ("num_layers", 2.0, "num_layers is 2.0; the weights have 2"),
        ("num_layers", True, "num_layers is True"),
        ("num_layers", "2", "num_layers is '2'"),
        ("width", -1, "width is -1; the weights have 64"),
        ("width", 10**4000, "width is a number of about 4000 digits"),
        ("eps", "small", "eps is 'small'; expected a value such as 1e-06"),
        ("eps", math.nan, "eps is nan; expected a finite number"),
        ("eps", -1, "eps is -1; expected 0 or more"),
        ("names", "a", "names is 'a'"),
        ("names", [1], "names is [1]"),
        ("flag", 1, "flag is 1"),
        ("other_layers", 5, "other_layers is 5; the 4 tensors of the weights allow 4 at most"),
        ("other", {"deep": [3, 10**9]}, "other.deep is 1000000000"),
        ("other", list(range(50_000)), "other.layers is 50000"),
    ],
)
def test_a_config_that_the_weights_do_not_have_is_named(key, value, said):
    check_config(Path("config.json"), FITTING, SHAPES, SIZES, DEFAULTS)
    with pytest.raises(CheckpointError, match="take the config.json that was published") as error:
        check_config(Path("config.json"), FITTING | {key: value}, SHAPES, SIZES, DEFAULTS)
    assert said in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("content", [[], 3, None, "text"])
def test_a_config_is_an_object(content):
    with pytest.raises(CheckpointError, match="expected an object"):
        check_config(Path("config.json"), content, SHAPES)
