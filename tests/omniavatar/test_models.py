import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from omniavatar.config import GenerateConfig, LoadConfig
from omniavatar.generate import generate_clips
from omniavatar.model.adapter import inject_lora, lora_layers
from omniavatar.model.transformer import AvatarTransformer
from omniavatar.models import AvatarModels, ModelPaths, load_models, resolve_device
from omniavatar.weights.checkpoints import AdapterConfig, save_adapter, save_base

CONFIG = GenerateConfig(steps=2, shift=2.0, height=32, width=32)


def clip(models: AvatarModels) -> np.ndarray:
    rng = np.random.default_rng(0)
    image, wave = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8), rng.standard_normal(5120).astype(np.float32)
    return generate_clips(models, [(image, wave, "a man speaks")], CONFIG)[0]


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


def test_lora_may_stay_beside_the_weights_and_another_may_join_it(
    tiny_models: AvatarModels, other_base: AvatarTransformer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    save_base(other_base, tmp_path / "transformer")
    trained = inject_lora(tiny_models.transformer, 4, 2.0)
    save_adapter(trained, tmp_path / "adapter", AdapterConfig("lora", 4, 2.0))
    tiny_models.vae.model.save_pretrained(tmp_path / "vae")
    tiny_models.text_encoder.model.save_pretrained(tmp_path / "text")
    tiny_models.audio_encoder.model.save_pretrained(tmp_path / "audio")
    save_file({"diffusion_model.head.head.diff_b": torch.full((64,), 0.3)}, tmp_path / "few.safetensors")
    folders = [tmp_path / name for name in ("transformer", "vae", "text")]
    paths = ModelPaths(*folders, tokenizer_folder, tmp_path / "audio", tmp_path / "adapter")
    few = str(tmp_path / "few.safetensors")
    loads = [
        LoadConfig(merge=False),
        LoadConfig(),
        LoadConfig(extra_lora=few),
        LoadConfig(extra_lora=few, extra_lora_scale=0.5),
    ]
    models = [load_models(paths, load) for load in loads]
    assert [all(layer.merged for layer in lora_layers(each.transformer)) for each in models] == [False, *3 * [True]]
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
