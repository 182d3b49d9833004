"""The README's lines for published weights, in a folder that holds only what they fetch.

The weights are random, the files are those of the hub repositories: their names, layouts, tensor names and config keys.
"""

import json
import shlex
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import T5TokenizerFast, Wav2Vec2Config, Wav2Vec2ForCTC

from common.media.index import probe
from common.runs import read_json
from omniavatar.model.adapter import inject_lora
from omniavatar.model.transformer import AvatarTransformer, load_base, to_avatar
from omniavatar.weights.checkpoints import AdapterConfig, save_adapter
from pipelines.drawn import draw_long_input
from pipelines.models import fetch as fetch_module
from pipelines.models.published import read_published
from tests.omniavatar import original_umt5, original_vae
from tests.pipelines.command_line import run_here

README = Path(__file__).parents[3] / "README.md"
LAYERS = 4


@dataclass(frozen=True)
class Sizes:
    """Widths of the models; the defaults are the published ones, but for the vocabulary. Depth is tiny everywhere."""

    dim: int = 1536
    heads: int = 12
    ffn: int = 8960
    text: int = 4096
    text_heads: int = 64
    text_ffn: int = 10240
    vae: int = 96
    audio: int = 768
    audio_layers: int = 12


SMALL = Sizes(dim=48, heads=2, ffn=64, text=32, text_heads=2, text_ffn=40, vae=8, audio=48, audio_layers=2)


def write_transformer(folder: Path, sizes: Sizes) -> None:
    """`config.json` and `diffusion_pytorch_model.safetensors` of Wan2.1-T2V-1.3B, cut to a few blocks."""
    dim, ffn = sizes.dim, sizes.ffn
    shapes = {"patch_embedding.weight": (dim, 16, 1, 2, 2), "patch_embedding.bias": (dim,)}
    linears = {"text_embedding.0": (dim, sizes.text), "text_embedding.2": (dim, dim), "time_embedding.0": (dim, 256)}
    linears |= {"time_embedding.2": (dim, dim), "time_projection.1": (6 * dim, dim), "head.head": (64, dim)}
    for block in range(LAYERS):
        for kind in ("self_attn", "cross_attn"):
            linears |= {f"blocks.{block}.{kind}.{part}": (dim, dim) for part in "qkvo"}
            shapes |= {f"blocks.{block}.{kind}.norm_{part}.weight": (dim,) for part in "qk"}
        linears |= {f"blocks.{block}.ffn.0": (ffn, dim), f"blocks.{block}.ffn.2": (dim, ffn)}
        shapes |= {f"blocks.{block}.norm3.weight": (dim,), f"blocks.{block}.norm3.bias": (dim,)}
        shapes[f"blocks.{block}.modulation"] = (1, 6, dim)
    shapes["head.modulation"] = (1, 2, dim)
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: torch.randn(shape) * 0.5 / shape[-1] ** 0.5 for name, shape in shapes.items()}
    config = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": dim, "eps": 1e-06, "ffn_dim": ffn}
    config |= {"freq_dim": 256, "in_dim": 16, "model_type": "t2v", "num_heads": sizes.heads, "num_layers": LAYERS}
    config |= {"out_dim": 16, "text_len": 512}
    if sizes.text != 4096:  # the published file leaves it out
        config["text_dim"] = sizes.text
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def write_tokenizer(folder: Path) -> int:
    """Pieces of one letter in the files of google/umt5-xxl; returns the size of the vocabulary."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((chr(n), -3.0) for n in range(33, 127))]
    T5TokenizerFast(vocab=pieces, extra_ids=0).save_pretrained(folder)
    return len(pieces)


def write_audio_encoder(folder: Path, sizes: Sizes) -> None:
    """facebook/wav2vec2-base-960h: a CTC model whose weight norm has the names of older libraries."""
    own = {"hidden_size": sizes.audio, "num_hidden_layers": sizes.audio_layers, "intermediate_size": 4 * sizes.audio}
    small = {"conv_dim": (16,) * 7, "num_attention_heads": 4} if sizes is SMALL else {}
    config = Wav2Vec2Config(**own, **small, architectures=["Wav2Vec2ForCTC"])
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    tensors = {}
    for name, tensor in Wav2Vec2ForCTC(config).state_dict().items():
        for present, past in old.items():
            name = name.replace(present, past)
        if not name.endswith("masked_spec_embed"):
            tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(config.to_json_string())
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "do_normalize": True}))


def write_repositories(folder: Path, sizes: Sizes) -> dict[str, Path]:
    """Entry of published.yaml -> folder with the files of its repository."""
    torch.manual_seed(0)
    folders = {name: folder / name for name in ("wan2.1-t2v-1.3b", "omniavatar-1.3b", "wav2vec2-base-960h")}
    base, adapter, audio = folders.values()
    for each in folders.values():
        each.mkdir(parents=True)
    write_transformer(base, sizes)
    torch.save(original_vae.random_weights(sizes.vae), base / "Wan2.1_VAE.pth")
    words = write_tokenizer(base / "google" / "umt5-xxl")
    heads = sizes.text_heads
    umt5 = original_umt5.random_weights(words, sizes.text, heads, sizes.text // heads, sizes.text_ffn, 1)
    half = {name: tensor.bfloat16() for name, tensor in umt5.items()}
    torch.save(half, base / "models_t5_umt5-xxl-enc-bf16.pth")
    avatar: AvatarTransformer = to_avatar(load_base(base), (sizes.audio_layers + 2) * sizes.audio)
    inject_lora(avatar)
    for parameter in avatar.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    save_adapter(avatar, adapter, AdapterConfig(), torch.bfloat16)
    write_audio_encoder(audio, sizes)
    return folders


def readme_line(start: str) -> list[str]:
    """The arguments of the README's command that starts so."""
    lines = [line for line in README.read_text("utf-8").splitlines() if line.startswith(f"omniavatar {start}")]
    assert len(lines) == 1, f"README.md has {len(lines)} lines that start with: omniavatar {start}"
    return shlex.split(lines[0])[1:]


@pytest.mark.parametrize("sizes", [SMALL, pytest.param(Sizes(), marks=pytest.mark.soak)])
def test_the_readmes_lines_for_published_weights_end_in_a_video(sizes, tmp_path, web, monkeypatch):
    published = read_published()
    for name, folder in write_repositories(tmp_path / "hub", sizes).items():
        files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
        web.publish(published[name].hub.repo, {path: file.read_bytes() for path, file in files.items()})
    monkeypatch.setattr(fetch_module, "fetch", partial(fetch_module.fetch, endpoint=web.address))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    request = draw_long_input(home, seconds=0.3)
    assert run_here(*readme_line("models fetch wan2.1-t2v-1.3b")).returncode == 0
    assert sorted(path.name for path in home.iterdir()) == ["portrait.png", "voice.wav", "weights"]

    checked = run_here("models", "check", "--recipe", "omniavatar-1.3b")
    assert checked.returncode == 0, checked.stdout
    states = {line.split()[0]: line.split()[1] for line in checked.stdout.splitlines()}
    made_of = ("transformer", "vae", "text_encoder", "tokenizer", "adapter", "audio_encoder")
    assert {states[role] for role in made_of} == {"ok"}
    judges = ("sync_scorer", "quality_scorer", "face_detector", "fid_features")
    assert {states[role] for role in judges} == {"absent"}

    request.image.rename("face.png")  # as the README calls it; the voice is called so already
    line = readme_line("generate --recipe omniavatar-1.3b")
    small = [f"--set=generate.{setting}" for setting in ("steps=2", "height=64", "width=64")]
    done = run_here(*line, *small)
    assert done.returncode == 0, done.stderr
    facts = probe(home / "avatar.mp4")
    assert facts.duration == pytest.approx(8 / 25) and facts.has_audio and (facts.height, facts.width) == (64, 64)
    assert set(read_json(home / "avatar.json")["models"]) == set(made_of)

    measured = run_here(*line, *small, "--measure")
    assert measured.returncode == 1 and "models.face_detector is weights/insightface-buffalo-l" in measured.stderr
    without = run_here(*line, *small, "--measure", "--set", "models.face_detector=")
    assert without.returncode == 0 and "no weights" in read_json(home / "avatar.json")["drift"]["identity"]["status"]
