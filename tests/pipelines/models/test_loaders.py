import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from transformers import (
    UMT5Config,
    UMT5EncoderModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from common.runs import read_json, write_json
from miniature.weights import model_paths
from perception.packaged import packaged_weights
from pipelines.models.check import UNUSABLE
from pipelines.models.loaders import LOADERS, Loaded
from pipelines.roles import MODEL_ROLES
from tests.perception.small_networks import write_constant

SHIPPED = packaged_weights() | model_paths()


def _load(role, path, *before):
    earlier: dict[str, Loaded] = {}
    for name in before:
        earlier[name] = LOADERS[name](SHIPPED[name], earlier)
    return LOADERS[role](path, earlier)


def test_every_role_has_its_loader():
    assert list(LOADERS) == list(MODEL_ROLES)


@pytest.mark.parametrize("role", [role for role in MODEL_ROLES if role in SHIPPED])
def test_no_role_takes_the_weights_of_another(role, tmp_path):
    junk = tmp_path / "junk.bin"
    junk.write_bytes(b"abc" * 1000)
    others = {str(path) for other, path in SHIPPED.items() if other != role} | {str(tmp_path), str(junk)}
    # Any tokenizer is one: what gives another model's away is that the text encoder does not know all its tokens.
    before = ("transformer", "text_encoder") if role == "tokenizer" else ()
    for other in sorted(others):
        with pytest.raises(UNUSABLE):
            _load(role, Path(other), *before)


@pytest.mark.parametrize(
    ("role", "file"),
    [
        ("vae", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "model.safetensors"),
        ("tokenizer", "tokenizer.json"),
        ("scheduler", "scheduler_config.json"),
        ("audio_encoder", "model.safetensors"),
        ("quality_scorer", "model.safetensors"),
        ("fid_features", ""),
        ("fvd_features", ""),
    ],
)
def test_a_file_cut_in_half_is_refused(role, file, tmp_path):
    copy = tmp_path / SHIPPED[role].name
    (shutil.copytree if file else shutil.copy)(SHIPPED[role], copy)
    content = (copy / file).read_bytes() if file else copy.read_bytes()
    (copy / file if file else copy).write_bytes(content[: len(content) // 2])
    with pytest.raises(UNUSABLE):
        _load(role, copy)


def test_nothing_of_the_large_models_is_read_into_memory():
    for role in ("transformer", "vae", "text_encoder", "audio_encoder"):
        loaded = _load(role, SHIPPED[role])
        tensors = list(loaded.tensors)
        assert tensors and all(tensor.is_meta for tensor in tensors)


def test_a_vae_with_other_latents_than_the_transformer_takes_is_refused(tmp_path):
    AutoencoderKLWan(base_dim=4, z_dim=8, latents_mean=[0.0] * 8, latents_std=[1.0] * 8).save_pretrained(tmp_path)
    assert _load("vae", tmp_path).model.model.config.z_dim == 8
    with pytest.raises(ValueError, match="latent channels is 8, the transformer takes 16"):
        _load("vae", tmp_path, "transformer")


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    sizes = {"d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 80}
    UMT5EncoderModel(UMT5Config(d_model=16, feed_forward_proj="gated-gelu", **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="width is 16, the transformer takes text of"):
        _load("text_encoder", tmp_path, "transformer")


def test_a_tokenizer_with_more_tokens_than_the_encoder_has_is_refused(tmp_path):
    shutil.copytree(SHIPPED["tokenizer"], tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    place = max(item["id"] for item in content["added_tokens"]) + 1000
    content["added_tokens"] += [
        content["added_tokens"][0] | {"id": place + number, "content": f"<{number}>"} for number in range(500)
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="tokens, the text encoder"):
        _load("tokenizer", tmp_path, "transformer", "text_encoder")


def test_an_audio_encoder_of_another_width_than_the_adapter_takes_is_refused(tmp_path):
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "conv_dim": [8] * 7}
    config = Wav2Vec2Config(hidden_size=16, num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=8, **sizes)
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    assert _load("audio_encoder", tmp_path).model.feature_dim == 48
    with pytest.raises(ValueError, match="width is 48, the adapter takes"):
        _load("audio_encoder", tmp_path, "transformer", "adapter")


def test_an_adapter_of_another_base_is_refused(tmp_path):
    shutil.copytree(SHIPPED["adapter"], tmp_path, dirs_exist_ok=True)
    tensors = torch.load(tmp_path / "pytorch_model.pt", weights_only=True)
    wider = {name: torch.cat([each, each]) for name, each in tensors.items() if name.endswith("patch_embedding.bias")}
    torch.save(tensors | wider, tmp_path / "pytorch_model.pt")
    assert "not compared" in _load("adapter", tmp_path).note
    with pytest.raises(ValueError, match=r"shape: patch_embedding.bias is \(256,\), expected \(128,\)"):
        _load("adapter", tmp_path, "transformer")


def test_a_recogniser_is_no_detector_and_its_tensors_are_counted():
    loaded = _load("face_identity", SHIPPED["face_detector"] / "rec_miniature.onnx")
    assert sum(tensor.numel() for tensor in loaded.tensors) > 50_000
    with pytest.raises(ValueError, match="det_miniature.onnx"):
        _load("face_identity", SHIPPED["face_detector"] / "det_miniature.onnx")


def test_a_captioner_needs_its_processor(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises((ValueError, OSError)):
        _load("captioner", tmp_path)


def test_both_networks_of_a_pose_estimator_are_counted(tmp_path):
    shapes = {"yolox_l.onnx": (1, 3, 64, 64), "dw-ll_ucoco_384.onnx": (1, 3, 384, 288)}
    answers = {"yolox_l.onnx": {"boxes": np.zeros((1, 84, 85))}}
    answers["dw-ll_ucoco_384.onnx"] = {"x": np.zeros((1, 133, 576)), "y": np.zeros((1, 133, 768))}
    for name, shape in shapes.items():
        write_constant(tmp_path / name, shape, answers[name])
    counted = sum(tensor.numel() for tensor in _load("pose", tmp_path).tensors)
    assert counted == 84 * 85 + 133 * (576 + 768) + 2


@pytest.mark.parametrize(
    ("role", "key", "value", "said"),
    [
        ("transformer", "num_layers", 10**7, "num_layers is 10000000; the weights have 6"),
        ("transformer", "attention_head_dim", 10**9, "num_attention_heads * attention_head_dim is 4000000000"),
        ("transformer", "rope_max_seq_len", 10**9, "rope_max_seq_len is 1000000000"),
        ("transformer", "ffn_dim", -1, "ffn_dim is -1"),
        ("transformer", "num_layers", 2.5, "num_layers is 2.5"),
        ("transformer", "patch_size", [10**9, 2, 2], "patch_size is [1000000000, 2, 2]; the weights have [1, 2, 2]"),
        ("transformer", "num_attention_heads", None, "config.json"),
        ("vae", "num_res_blocks", 10**7, "num_res_blocks is 10000000; the weights have 1"),
        ("vae", "dim_mult", [1, 2, 10**9], "base_dim * dim_mult is 16000000000"),
        ("vae", "base_dim", "16", "base_dim is '16'"),
        ("vae", "latents_mean", [0.5], "length of latents_mean is 1; the weights have 16"),
        ("vae", "latents_mean", None, "length of latents_mean is 0"),
        ("text_encoder", "num_layers", 10**7, "num_layers is 10000000; the"),
        ("text_encoder", "hidden_size", 10**9, "hidden_size is 1000000000"),
        ("text_encoder", "num_labels", 10**9, "num_labels is 1000000000"),
        ("text_encoder", "d_kv", "x", "d_kv is 'x'"),
        ("audio_encoder", "num_hidden_layers", 10**7, "num_hidden_layers is 10000000; the"),
        ("audio_encoder", "conv_kernel", [10**9] * 7, "conv_kernel is 1000000000"),
        ("audio_encoder", "num_conv_pos_embeddings", 0, "num_conv_pos_embeddings is 0; the weights have 16"),
        ("quality_scorer", "num_hidden_layers", 10**7, "num_hidden_layers is 10000000; the"),
        ("quality_scorer", "visual_config", {"visual_abstractor": {"grid_size": 10**9}}, "grid_size is 1000000000"),
        ("quality_scorer", "visual_config", 3, "holds 3; expected an object"),
        ("adapter", "lora_rank", 10**9, "lora_rank is 1000000000; the weights have 32"),
        ("adapter", "lora_alpha", "much", "lora_alpha is 'much'"),
    ],
)
def test_a_config_is_compared_with_its_weights_before_anything_is_built(tmp_path, role, key, value, said):
    source = model_paths()[role]
    for file in source.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    write_json(tmp_path / "config.json", read_json(source / "config.json") | {key: value})
    earlier = {"transformer": Loaded(model_paths()["transformer"])}
    started = time.process_time()
    with pytest.raises(ValueError, match=re.escape(said)):
        LOADERS[role](tmp_path, earlier if role == "adapter" else {})
    assert time.process_time() - started < 5
