import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from common.errors import DamagedFileError
from common.runs import write_json
from omniavatar.encoders.audio import load_audio_encoder
from omniavatar.encoders.text import TextEncoder, load_text_encoder, save_text_encoder
from omniavatar.encoders.vae import WanVAE, load_vae, save_vae
from omniavatar.model.adapter import inject_lora
from omniavatar.model.transformer import config_to_original, load_base, new_base
from omniavatar.weights.checkpoints import AdapterConfig, load_adapter, save_adapter, save_base
from omniavatar.weights.model_configs import build_empty
from omniavatar.weights.tensor_files import (
    CheckpointError,
    check_tensors,
    fill_module,
    is_finite,
    read_tensors,
    shard_files,
    weights_file,
    write_shards,
    write_torch_file,
)
from tests.benchmarks.measure import peak_resident
from tests.omniavatar.conftest import make_avatar, make_base, make_tokenizer, make_umt5, make_vae, make_wav2vec2


def test_empty_modules_have_real_buffers() -> None:
    module = build_empty(lambda: nn.BatchNorm1d(3))
    assert module.weight.is_meta and not module.running_mean.is_meta


def test_every_difference_is_listed() -> None:
    expected = {"a": torch.Size([2]), "b": torch.Size([2]), "c": torch.Size([2])}
    given = {"a": torch.zeros(3), "b": torch.tensor([0.0, float("inf")]), "d": torch.zeros(1)}
    kinds = {problem.split(":")[0] for problem in check_tensors(expected, given)}
    assert kinds == {"missing", "shape", "broken", "unexpected"}


def test_a_module_is_filled_in_the_type_asked_for() -> None:
    module = build_empty(lambda: nn.Linear(2, 2))
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


def test_finite_is_what_holds_neither_nan_nor_infinity() -> None:
    good = torch.tensor([3e38, -3e38, 0.0])
    assert is_finite(good) and is_finite(good.bfloat16()) and is_finite(torch.zeros(0)) and is_finite(good.to("meta"))
    for bad in ("nan", "inf", "-inf"):
        assert not is_finite(torch.tensor([1.0, float(bad), 2.0]))
        assert not is_finite(torch.tensor([float(bad)], dtype=torch.bfloat16))


def test_written_shards_come_back_and_replace_an_older_split(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.full((100,), float(number)) for number in range(5)}
    write_shards(tmp_path, tensors, "model", shard_size=900)
    assert len(shard_files(tmp_path)) == 3 and weights_file(tmp_path).name == "model.safetensors.index.json"
    # Read as maps of the very files that are replaced.
    again = dict(read_tensors(tmp_path))
    write_shards(tmp_path, again, "model", torch.bfloat16)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"] == [weights_file(tmp_path).name]
    for name, tensor in read_tensors(tmp_path):
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor.float(), tensors[name])
        assert torch.equal(again[name], tensors[name])


def test_a_torch_file_holds_no_more_than_its_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.ones(8), "b": torch.zeros(100_000)}, tmp_path / "x.safetensors")
    write_torch_file(tmp_path / "a.pt", {"a": dict(read_tensors(tmp_path))["a"]})
    assert (tmp_path / "a.pt").stat().st_size < 5_000
    assert [name for name, _ in read_tensors(tmp_path / "a.pt")] == ["a"]


def test_nothing_broken_or_empty_is_written(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([float("nan")]), "b": torch.zeros(1, device="meta")}
    for write in (
        lambda: write_shards(tmp_path, tensors, "model"),
        lambda: write_torch_file(tmp_path / "x.pt", tensors),
    ):
        with pytest.raises(CheckpointError) as caught:
            write()
        assert caught.value.problems == ["empty: b has no data (device meta)", "broken: a holds NaN or infinity"]
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Format:
    """How a tiny model of one kind is written and loaded, and a tensor of its file to damage."""

    write: Callable[[Path], object]
    load: Callable[[Path, str], nn.Module]
    victim: str
    file: str = "diffusion_pytorch_model.safetensors"


def _save_adapter(folder: Path) -> None:
    save_adapter(inject_lora(make_avatar(), 4, 2.0), folder, AdapterConfig(rank=4, alpha=2.0))


def _load_adapter(folder: Path, device: str) -> nn.Module:
    return load_adapter(make_base().to(device), folder)


def _save_text(path: Path, layout: Any) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(make_tokenizer(path.parent / "tokenizer"))
    save_text_encoder(TextEncoder(make_umt5(), tokenizer), path, layout=layout)


def _load_text(path: Path, device: str) -> nn.Module:
    return load_text_encoder(path, path.parent / "tokenizer", device=device).model


FORMATS = {
    "base": Format(
        lambda path: save_base(make_base(), path), lambda path, on: load_base(path, device=on), "proj_out.bias"
    ),
    "original base": Format(
        lambda path: save_base(make_base(), path, layout="original", shard_size=100_000),
        lambda path, on: load_base(path, device=on),
        "blocks.2.cross_attn.norm_k.weight",
        "diffusion_pytorch_model-00002-of-00004.safetensors",
    ),
    "adapter": Format(_save_adapter, _load_adapter, "blocks.3.ffn.0.lora_B.default.weight", "pytorch_model.pt"),
    "vae": Format(
        lambda path: save_vae(WanVAE(make_vae()), path), lambda path, on: load_vae(path, device=on), "quant_conv.bias"
    ),
    "original vae": Format(
        lambda path: save_vae(WanVAE(make_vae()), path / "vae.pth", layout="original"),
        lambda path, on: load_vae(path / "vae.pth", device=on),
        "decoder.upsamples.7.resample.1.bias",
        "vae.pth",
    ),
    "text": Format(
        lambda path: _save_text(path, "transformers"),
        _load_text,
        "encoder.final_layer_norm.weight",
        "model.safetensors",
    ),
    "original text": Format(
        lambda path: _save_text(path / "umt5.pth", "original"),
        lambda path, on: _load_text(path / "umt5.pth", on),
        "blocks.1.ffn.gate.0.weight",
        "umt5.pth",
    ),
    "audio": Format(
        lambda path: make_wav2vec2().save_pretrained(path),
        lambda path, on: load_audio_encoder(path, device=on).model,
        "encoder.layers.1.attention.k_proj.bias",
        "model.safetensors",
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format -> a sound model of it."""
    folders = {kind: tmp_path_factory.mktemp(kind.replace(" ", "_")) / "model" for kind in FORMATS}
    for kind, folder in folders.items():
        folder.mkdir()
        FORMATS[kind].write(folder)
    return folders


@pytest.mark.parametrize("kind", FORMATS)
def test_headers_alone_make_an_empty_model(kind: str, written: dict[str, Path]) -> None:
    whole, empty = (FORMATS[kind].load(written[kind], on).state_dict() for on in ("cpu", "meta"))
    assert all(tensor.is_meta for tensor in empty.values()) and not any(tensor.is_meta for tensor in whole.values())
    assert [(n, t.shape, t.dtype) for n, t in whole.items()] == [(n, t.shape, t.dtype) for n, t in empty.items()]


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code ran",)


def _rename(state: dict[str, Tensor], name: str) -> None:
    state[f"{name}_x"] = state.pop(name)


DAMAGE: dict[str, tuple[Callable[[dict[str, Tensor], str], object], list[str]]] = {
    "renamed": (_rename, ["missing: {}", "unexpected: {}_x"]),
    "missing": (lambda state, name: state.pop(name), ["missing: {}"]),
    "shape": (lambda state, name: state.update({name: torch.zeros(3, 5, 7)}), ["shape: {} is (3, 5, 7), expected"]),
    "type": (lambda state, name: state.update({name: torch.zeros_like(state[name], dtype=torch.int32)}), ["type: {}"]),
    "NaN": (lambda state, name: state[name].view(-1)[:1].fill_(torch.nan), ["broken: {} holds NaN"]),
}


@pytest.mark.parametrize("on", ["cpu", "meta"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_tensor_that_is_not_right_is_named_with_its_file(
    kind: str, damage: str, on: str, written: dict[str, Path], tmp_path: Path
) -> None:
    form, (spoil, wanted) = FORMATS[kind], DAMAGE[damage]
    folder = _copy(written[kind], tmp_path)
    file, safe = folder / form.file, form.file.endswith(".safetensors")
    state = {n: t.clone() for n, t in (load_file(file) if safe else torch.load(file, weights_only=True)).items()}
    spoil(state, form.victim)
    save_file(state, file, metadata={"format": "pt"}) if safe else torch.save(state, file)
    if damage == "NaN" and on == "meta":
        form.load(folder, on)  # values are not looked at
        return
    with pytest.raises(CheckpointError) as caught:
        form.load(folder, on)
    problems = sorted(caught.value.problems)
    assert len(problems) == len(wanted)
    assert all(problem.startswith(start.format(form.victim)) for problem, start in zip(problems, wanted, strict=True))
    assert str(caught.value).startswith(f"{weights_file(folder if safe else file)} cannot be used")


@pytest.mark.parametrize("on", ["cpu", "meta"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_file_and_one_with_code_are_refused(
    kind: str, on: str, written: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(written[kind], tmp_path)
    file = folder / FORMATS[kind].file
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(CheckpointError, match=f"{file.name} cannot be used"):
        FORMATS[kind].load(folder, on)
    torch.save({FORMATS[kind].victim: Code()}, file)
    with pytest.raises(CheckpointError, match="not a readable safetensors|code in weight files is refused"):
        FORMATS[kind].load(folder, on)
    assert "code ran" not in capsys.readouterr().out


def _copy(model: Path, to: Path) -> Path:
    shutil.copytree(model.parent, to / "copy")
    return to / "copy" / model.name


HEADROOM = 30  # MB for the interpreter, the modules' Python side and one converted tensor


@pytest.fixture(scope="module")
def large_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """204 MB of float32 in shards of 34 MB, original layout."""
    config = {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "num_layers": 12, "text_dim": 64}
    model = build_empty(lambda: new_base(config))
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(config_to_original(model.dit)))
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in model.dit.state_dict().items()}
    write_shards(folder / "diffusers", zeros, "diffusion_pytorch_model", shard_size="34MB")
    (folder / "diffusers" / "config.json").write_text(json.dumps({**config, "_class_name": "WanTransformer3DModel"}))
    write_torch_file(folder / "whole.pth", zeros)
    return folder


def _megabytes(model: nn.Module) -> float:
    return sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6


def test_loading_takes_the_model_and_one_shard(large_base: Path) -> None:
    folder = large_base / "diffusers"
    shards = [file.stat().st_size / 1e6 for file in shard_files(folder)]
    model = _megabytes(load_base(folder, torch.bfloat16))
    assert len(shards) >= 6 and sum(shards) > 1.9 * model
    assert peak_resident(lambda: load_base(folder, torch.bfloat16)) < model + max(shards) + HEADROOM
    assert peak_resident(lambda: load_base(folder)) < sum(shards) + max(shards) + HEADROOM
    assert peak_resident(lambda: load_base(folder, device="meta")) < HEADROOM


def test_a_torch_file_is_mapped_too(large_base: Path) -> None:
    file = large_base / "whole.pth"
    size = file.stat().st_size / 1e6
    assert peak_resident(lambda: list(read_tensors(file, "meta"))) < HEADROOM
    assert peak_resident(lambda: [is_finite(tensor) for _, tensor in read_tensors(file)]) < size + HEADROOM


@pytest.mark.parametrize(
    "places",
    [
        {"a": "../secret.safetensors"},
        {"a": "/etc/w.safetensors"},
        {"a": 3},
        {"a": "w.pt"},
        ["a"],
        {"a": "x\n.safetensors"},
    ],
)
def test_an_index_names_files_beside_it(tmp_path: Path, places: Any) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    folder = tmp_path / "model"
    write_json(folder / "m.safetensors.index.json", {"weight_map": places})
    with pytest.raises(DamagedFileError, match="expected the name of a file beside it"):
        list(read_tensors(folder))


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"[" * 100_000, b"\xff", b" " * 2000])
def test_an_index_without_places_is_named(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.runs.LARGEST_JSON", 150_000)
    (tmp_path / "m.safetensors.index.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match="index.json"):
        list(read_tensors(tmp_path))
    monkeypatch.setattr("common.runs.LARGEST_JSON", 0)
    with pytest.raises(DamagedFileError, match="expected at most 0" if content else "index.json"):
        list(read_tensors(tmp_path))
