"""Tiny random models in the formats of the real ones, shared by the tests of this folder."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from omniavatar.config import AudioEntry
from omniavatar.encoders.audio import AudioEncoder
from omniavatar.encoders.text import TextEncoder
from omniavatar.encoders.vae import WanVAE
from omniavatar.model.transformer import AvatarTransformer, build_condition, new_base, to_avatar
from omniavatar.models import AvatarModels

TEXT_LENGTH = 12
TEXT_DIM = 24
AUDIO_DIM = (2 + 2) * 16
DIT_CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 6,
    "rope_max_seq_len": 64,
}


def randomise(model: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Give every parameter a random value, zero-initialised ones included, so that no path is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale / fan_in**0.5)


def make_base(seed: int = 0, **changes: int) -> AvatarTransformer:
    """A plain text-to-video transformer of six small blocks."""
    torch.manual_seed(seed)
    model = new_base(DIT_CONFIG | changes)
    randomise(model, seed)
    return model.eval()


def make_avatar(seed: int = 0, entry: AudioEntry = "multi") -> AvatarTransformer:
    """The same with audio, all of its new weights random and not zero."""
    model = to_avatar(make_base(seed), AUDIO_DIM, entry=entry)
    randomise(model, seed + 1)
    return model.eval()


@pytest.fixture
def base() -> AvatarTransformer:
    return make_base()


@pytest.fixture
def other_base() -> AvatarTransformer:
    """A second copy of `base`, equal weights."""
    return make_base()


@pytest.fixture
def avatar() -> AvatarTransformer:
    return make_avatar()


@pytest.fixture(params=get_args(AudioEntry))
def any_avatar(request: pytest.FixtureRequest) -> AvatarTransformer:
    """`avatar`, once for each way the sound can enter."""
    return make_avatar(entry=request.param)


def make_vae(**changes: object) -> AutoencoderKLWan:
    torch.manual_seed(3)
    model = AutoencoderKLWan(**({"base_dim": 4} | changes)).eval()
    randomise(model, 3, 0.5)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def wan21_vae() -> WanVAE:
    """The Wan2.1 topology with four channels for 96."""
    return WanVAE(make_vae())


@pytest.fixture(scope="session")
def patch_vae() -> WanVAE:
    """A VAE that folds pixels into channels first, as the miniature's does."""
    patches = {"dim_mult": [1, 2, 4], "temperal_downsample": [True, True], "patch_size": 2}
    return WanVAE(make_vae(**patches, in_channels=12, out_channels=12, num_res_blocks=1))


def make_tokenizer(folder: Path) -> Path:
    words = ["<pad>", "</s>", "<unk>", "a", "man", "woman", "speaks", "red", "hair", "and", "smiles"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=TEXT_LENGTH, **special).save_pretrained(folder)
    return folder


def make_umt5() -> UMT5EncoderModel:
    torch.manual_seed(4)
    sizes = {"vocab_size": 16, "d_model": TEXT_DIM, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    return UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu")).eval()


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def text_encoder(tokenizer_folder: Path) -> TextEncoder:
    return TextEncoder(make_umt5(), PreTrainedTokenizerFast.from_pretrained(tokenizer_folder))


def make_wav2vec2() -> Wav2Vec2Model:
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    convolutions = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2Model(Wav2Vec2Config(**sizes, **convolutions)).eval()


@pytest.fixture(scope="session")
def audio_encoder() -> AudioEncoder:
    return AudioEncoder(make_wav2vec2())


@pytest.fixture
def tiny_models(
    avatar: AvatarTransformer, patch_vae: WanVAE, text_encoder: TextEncoder, audio_encoder: AudioEncoder
) -> AvatarModels:
    """The four networks together, ready to generate pictures of noise."""
    return AvatarModels(avatar.requires_grad_(False), patch_vae, text_encoder, audio_encoder, identity="tiny")


@pytest.fixture
def given() -> tuple[torch.Tensor, ...]:
    """What `avatar` is called with: one video of three latent frames of 4 x 4."""
    torch.manual_seed(0)
    condition = build_condition(torch.randn(1, 16, 1, 4, 4), 3, 1)
    noisy, text, audio = torch.randn(1, 16, 3, 4, 4), torch.randn(1, 5, 24), torch.randn(1, 9, 64)
    return noisy, torch.tensor([500.0]), text, condition, audio
