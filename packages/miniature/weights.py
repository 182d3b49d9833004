"""Where the shipped tiny weights lie: one entry per model role, in the format its authors publish the real one in."""

from pathlib import Path

MODEL_ROLES = {
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
    "fid_features": "fid/inception.pt",
    "fvd_features": "fvd/i3d_torchscript.pt",
}


def weights_dir() -> Path:
    """The folder of the shipped weights, inside the installed package."""
    return Path(__file__).parent / "weights"


def model_paths() -> dict[str, Path]:
    """Role -> path of every shipped model."""
    return {role: weights_dir() / relative for role, relative in MODEL_ROLES.items()}
