import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omniavatar.config import GenerateConfig, LoadConfig, MemoryMode
from omniavatar.generate import generate_clips
from omniavatar.model.adapter import inject_lora, lora_layers
from omniavatar.model.transformer import AvatarTransformer, load_base
from omniavatar.models import AvatarModels, ModelPaths, load_models, resolve_device
from omniavatar.planning.memory import Job
from omniavatar.weights.checkpoints import AdapterConfig, save_adapter, save_base
from omniavatar.weights.tensor_files import CheckpointError

CONFIG = GenerateConfig(steps=2, shift=2.0, height=32, width=32)


def clip(models: AvatarModels) -> np.ndarray:
    rng = np.random.default_rng(0)
    image, wave = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), rng.standard_normal(5120).astype(np.float32)
    return generate_clips(models, [(image, wave, "a man speaks")], CONFIG)[0]


@pytest.fixture
def paths(
    tiny_models: AvatarModels, other_base: AvatarTransformer, tokenizer_folder: Path, tmp_path: Path
) -> ModelPaths:
    save_base(other_base, tmp_path / "transformer")
    trained = inject_lora(tiny_models.transformer, 4, 2.0)
    save_adapter(trained, tmp_path / "adapter", AdapterConfig("lora", 4, 2.0))
    tiny_models.vae.model.save_pretrained(tmp_path / "vae")
    tiny_models.text_encoder.model.save_pretrained(tmp_path / "text")
    tiny_models.audio_encoder.model.save_pretrained(tmp_path / "audio")
    folders = [tmp_path / name for name in ("transformer", "vae", "text")]
    return ModelPaths(*folders, tokenizer_folder, tmp_path / "audio", tmp_path / "adapter")


def test_models_load_from_their_folders(
    tiny_models: AvatarModels, other_base: AvatarTransformer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_base(other_base, tmp_path / "transformer")
    save_adapter(tiny_models.transformer, tmp_path / "adapter", AdapterConfig("full"))
    tiny_models.vae.model.save_pretrained(tmp_path / "vae")
    tiny_models.text_encoder.model.save_pretrained(tmp_path / "text")
    tiny_models.audio_encoder.model.save_pretrained(tmp_path / "audio")
    folders = [tmp_path / name for name in ("transformer", "vae", "text")]
    paths = ModelPaths(*folders, tokenizer_folder, tmp_path / "audio", tmp_path / "adapter")
    loaded = load_models(paths)
    exact = clip(loaded)
    assert np.array_equal(exact, clip(tiny_models))
    half = load_models(paths, LoadConfig(dtype="bf16"))
    assert np.abs(clip(half).astype(int) - exact).mean() < 5
    assert len({loaded.identity, half.identity, load_models(replace(paths, adapter=None)).identity}) == 3
    streamed = load_models(paths, LoadConfig(offload="blocks"))
    assert np.array_equal(exact, clip(streamed))
    block = weakref.ref(streamed.transformer.dit.blocks[0])
    del streamed
    gc.disable()
    try:
        load_models(paths, LoadConfig(offload="blocks"))
        assert block() is None  # the base that drew a portrait makes room for the model of the video
    finally:
        gc.enable()


def test_lora_may_stay_beside_the_weights_and_another_may_join_it(paths: ModelPaths, tmp_path: Path) -> None:
    save_file({"diffusion_model.head.head.diff_b": torch.full((64,), 0.3)}, tmp_path / "few.safetensors")
    few = str(tmp_path / "few.safetensors")
    loads = [
        LoadConfig(merge=False),
        LoadConfig(),
        LoadConfig(extra_lora=few),
        LoadConfig(extra_lora=few, extra_lora_scale=0.5),
    ]
    models = [load_models(paths, load) for load in loads]
    assert [len(lora_layers(each.transformer)) > 0 for each in models] == [True, *3 * [False]]
    biases = [each.transformer.dit.proj_out.bias for each in models]
    assert [round((bias - biases[0]).mean().item(), 3) for bias in biases] == [0, 0, 0.3, 0.15]
    assert len({each.identity for each in models}) == 4
    assert np.abs(clip(models[0]).astype(int) - clip(models[1])).max() <= 1


def test_where_the_networks_run() -> None:
    device, dtype = resolve_device(LoadConfig())
    assert (device.type, dtype) == (("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32))
    assert resolve_device(LoadConfig("cpu", "bf16")) == (torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="cuda:99"):
        resolve_device(LoadConfig("cuda:99"))


@pytest.mark.parametrize(("dtype", "mode"), [("fp32", "offloaded_tiled"), ("bf16", "text_streamed")])
def test_modes_with_exact_weights_give_the_same_video(
    paths: ModelPaths, dtype: Literal["fp32", "bf16"], mode: MemoryMode
) -> None:
    expected = clip(load_models(paths, LoadConfig(dtype=dtype)))
    models = load_models(paths, LoadConfig(dtype=dtype, memory=mode))  # one tile is enough for a picture of this size
    assert np.array_equal(clip(models), expected)
    assert np.array_equal(clip(models), expected)  # the text encoder comes back for the next video


def test_weights_in_8_bits(paths: ModelPaths) -> None:
    expected = clip(load_models(paths))
    models = [load_models(paths, LoadConfig(memory=mode)) for mode in ("int8", "int8_offloaded")]
    videos = [clip(each) for each in models]
    assert 0 < np.abs(videos[0].astype(int) - expected).mean() < 2
    assert np.array_equal(*videos)
    kinds = {str(value.dtype) for name, value in models[0].transformer.named_parameters() if "to_q.weight" in name}
    assert kinds == {"torch.int8"}
    assert len({each.identity for each in (*models, load_models(paths))}) == 3


def test_a_streamed_text_encoder_holds_no_weights(paths: ModelPaths) -> None:
    encoder = load_models(paths, LoadConfig(memory="text_streamed")).text_encoder
    encoder.encode(["a man speaks"])
    own = [parameter.data_ptr() for parameter in encoder.model.parameters()]
    assert all(mapped(address, paths.text_encoder) for address in own)


def mapped(address: int, folder: Path) -> bool:
    """Whether an address lies in the map of a file in `folder`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(side, 16) for side in line.split()[0].split("-"))
        if low <= address < high:
            return str(folder) in line
    return False


def test_auto_takes_the_first_mode_that_fits(
    paths: ModelPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    load_models(paths, job=Job(32, 32, 9, 5, seconds=1.0))
    assert "memory mode resident: needs" in caplog.text
    monkeypatch.setattr("omniavatar.models.free_host_memory", lambda: 1_000_000)
    models = load_models(paths, job=Job(32, 32, 9, 5, seconds=1.0))
    assert "No memory mode with exact weights is expected to fit. tiled, the smallest" in caplog.text
    assert models.text_encoder.device is not None


def test_a_broken_weight_is_found_while_its_block_is_loaded(paths: ModelPaths) -> None:
    base = load_base(paths.transformer)
    base.dit.blocks[1].ffn.net[2].bias.data[0] = torch.nan
    save_file(base.dit.state_dict(), paths.transformer / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match=r"safetensors cannot be used.*\n.*blocks.1.ffn.net.2.bias holds NaN"):
        load_models(paths)
