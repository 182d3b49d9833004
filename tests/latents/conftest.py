"""Tiny random encoders on disk, in the formats of the real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel, Wav2Vec2Config, Wav2Vec2Model

from latents.encode import Encoders, load_encoders

WORDS = ["<pad>", "</s>", "<unk>", "a", "man", "woman", "speaks", "red", "hair"]


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Role -> folder of every encoder."""
    root = tmp_path_factory.mktemp("models")
    folders = {role: root / role for role in ("vae", "text_encoder", "tokenizer", "audio_encoder")}
    torch.manual_seed(0)
    patches = {"in_channels": 12, "out_channels": 12, "patch_size": 2, "num_res_blocks": 1}
    AutoencoderKLWan(base_dim=4, dim_mult=[1, 2, 4], temperal_downsample=[True, True], **patches).save_pretrained(
        folders["vae"]
    )
    sizes = {"vocab_size": 16, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    UMT5EncoderModel(UMT5Config(**sizes)).save_pretrained(folders["text_encoder"])
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    stem = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **stem)).save_pretrained(folders["audio_encoder"])
    save_tokenizer(folders["tokenizer"])
    return folders


def save_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **special).save_pretrained(folder)


@pytest.fixture(scope="session")
def encoders(encoder_folders: dict[str, Path]) -> Encoders:
    return load_encoders(encoder_folders, references=3)


@pytest.fixture(scope="session")
def clip() -> tuple[np.ndarray, np.ndarray]:
    """15 moving frames 32x32 and a sound that changes all along, which is 3 samples too short."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (15, 32, 32, 3)).astype(np.uint8)
    return frames, rng.standard_normal(15 * 640 - 3).astype(np.float32) / 8
