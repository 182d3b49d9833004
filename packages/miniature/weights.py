"""Paths of the shipped tiny weights: one for each role that has some, in the format of the real ones."""

from collections.abc import Mapping
from pathlib import Path

WEIGHT_PATHS: Mapping[str, str] = {
    "transformer": "wan/transformer",
    "vae": "wan/vae",
    "text_encoder": "wan/text_encoder",
    "tokenizer": "wan/tokenizer",
    "scheduler": "wan/scheduler",
    "adapter": "omniavatar",
    "audio_encoder": "wav2vec2",
    "sync_scorer": "syncnet/syncnet_v2.model",
    "quality_scorer": "one-align",
    "face_detector": "insightface",
    "face_identity": "insightface/rec_miniature.onnx",
    "fid_features": "fid/inception.pt",
    "fvd_features": "fvd/i3d_torchscript.pt",
}


def weights_dir() -> Path:
    """The folder of the shipped weights, inside the installed package."""
    return Path(__file__).parent / "weights"


def model_paths() -> dict[str, Path]:
    """Role -> path of every shipped model."""
    return {role: weights_dir() / relative for role, relative in WEIGHT_PATHS.items()}
