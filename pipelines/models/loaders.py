"""Loaders of every role for `models check`: weights have to load, and to fit the roles loaded before.

Only headers are read where the format has them (device "meta"): a folder of 70 GB takes seconds and no memory. Judges
are imported when a recipe names their weights: checking those of generation needs no extra.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from common.errors import InputError, MissingFileError, load_reason
from common.runs import read_json
from miniature.weights import model_paths
from omniavatar.encoders.audio import load_audio_encoder
from omniavatar.encoders.text import load_text_encoder, load_tokenizer
from omniavatar.encoders.vae import load_vae
from omniavatar.model.transformer import load_base
from omniavatar.weights.checkpoints import WEIGHTS_FILE, load_adapter
from omniavatar.weights.tensor_files import read_tensors


@dataclass(frozen=True)
class Loaded:
    """A loaded role: its path, the model for roles that have to fit it, its tensors, and a note for the user."""

    path: Path
    model: Any = None
    tensors: Iterable[Tensor] = ()
    note: str = ""


Earlier = Mapping[str, Loaded]


def _headers(path: Path) -> list[Tensor]:
    return [tensor for _, tensor in read_tensors(path, device="meta")]


def _transformer(path: Path, earlier: Earlier) -> Loaded:
    return Loaded(path, load_base(path, device="meta"), _headers(path))


def _vae(path: Path, earlier: Earlier) -> Loaded:
    vae = load_vae(path, device="meta")
    if "transformer" in earlier:
        takes = earlier["transformer"].model.dit.config.in_channels
        _expect("latent channels", vae.model.config.z_dim, "the transformer takes", takes)
    return Loaded(path, vae, _headers(path))


def _text_encoder(path: Path, earlier: Earlier) -> Loaded:
    # Loading needs a tokenizer, any will do: the recipe's has a finding of its own.
    encoder = load_text_encoder(path, model_paths()["tokenizer"], device="meta")
    if "transformer" in earlier:
        _expect("width", encoder.dim, "the transformer takes text of", earlier["transformer"].model.dit.config.text_dim)
    return Loaded(path, encoder.model, _headers(path))


def _tokenizer(path: Path, earlier: Earlier) -> Loaded:
    tokenizer = load_tokenizer(path)
    if "text_encoder" in earlier:
        vocabulary = earlier["text_encoder"].model.config.vocab_size
        if len(tokenizer) > vocabulary:
            raise InputError(
                f"{path} has {len(tokenizer)} tokens, the text encoder {vocabulary}; use its own tokenizer."
            )
    return Loaded(path, tokenizer, note=f"{len(tokenizer)} tokens")


def _scheduler(path: Path, earlier: Earlier) -> Loaded:
    file = path / "scheduler_config.json"
    if not file.is_file():
        raise MissingFileError(f"{file} does not exist; expected the scheduler folder of a diffusers pipeline.")
    name = read_json(file).get("_class_name")
    if "Scheduler" not in str(name):
        raise InputError(f"{file} is of {name}; expected the scheduler folder of a diffusers pipeline.")
    return Loaded(path, note=str(name))


def _adapter(path: Path, earlier: Earlier) -> Loaded:
    tensors = _headers(path / WEIGHTS_FILE)
    if "transformer" not in earlier:
        return Loaded(path, None, tensors, "not compared with the transformer, which is absent or wrong")
    # A base of its own, because the adapter widens its input.
    return Loaded(path, load_adapter(load_base(earlier["transformer"].path, device="meta"), path), tensors)


def _audio_encoder(path: Path, earlier: Earlier) -> Loaded:
    encoder = load_audio_encoder(path, device="meta")
    if "adapter" in earlier and earlier["adapter"].model is not None:
        _expect("width", encoder.feature_dim, "the adapter takes", earlier["adapter"].model.audio_dim)
    return Loaded(path, encoder, _headers(path))


def _expect(what: str, found: int, who: str, expected: int) -> None:
    if found != expected:
        raise InputError(
            f"Its {what} is {found}, {who} {expected}: they belong to different models, choose a matching pair."
        )


def _sync_scorer(path: Path, earlier: Earlier) -> Loaded:
    from perception.sync.syncnet import load_syncnet

    net = load_syncnet(path)
    return Loaded(path, net, net.state_dict().values())


def _active_speaker(path: Path, earlier: Earlier) -> Loaded:
    from perception.sync.active_speaker import load_active_speaker

    net = load_active_speaker(path)
    return Loaded(path, net, net.state_dict().values())


def _quality_scorer(path: Path, earlier: Earlier) -> Loaded:
    from perception.quality.qalign import check_qalign

    check_qalign(path)
    return Loaded(path, tensors=_headers(path))


def _captioner(path: Path, earlier: Earlier) -> Loaded:
    """Any family of transformers. Tensor names are checked by transformers when it loads them, so only headers are
    read."""
    from perception.captions import check_captioner

    check_captioner(path)
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        AutoProcessor.from_pretrained(path, **options)
        config = AutoConfig.from_pretrained(path, **options)
        with torch.device("meta"):
            AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except ImportError as error:
        raise InputError(f"{path} needs a library that is not installed: {error}") from error
    except (OSError, ValueError) as error:
        reason = load_reason(path, error)
        raise InputError(f"{path} is not an image-text-to-text model of transformers ({reason}).") from error
    return Loaded(path, None, _headers(path), "names not compared")


def _face_detector(path: Path, earlier: Earlier) -> Loaded:
    from perception.faces.detect import load_face_detector

    files = [path] if path.is_file() else sorted(path.glob("*.onnx"))
    return Loaded(path, load_face_detector(path), _onnx_tensors(files))


def _speech_detector(path: Path, earlier: Earlier) -> Loaded:
    from perception.speech.silero import load_voice_detector

    return Loaded(path, load_voice_detector(path), _onnx_tensors([path]))


def _text_detector(path: Path, earlier: Earlier) -> Loaded:
    from perception.text import load_text_detector

    return Loaded(path, load_text_detector(path), _onnx_tensors([path]))


def _shot_detector(path: Path, earlier: Earlier) -> Loaded:
    from perception.shots import load_shot_net

    net = load_shot_net(path)
    return Loaded(path, net, net.state_dict().values())


def _face_identity(path: Path, earlier: Earlier) -> Loaded:
    from perception.faces.identity import load_face_identity

    return Loaded(path, load_face_identity(path), _onnx_tensors([path]))


def _pose(path: Path, earlier: Earlier) -> Loaded:
    from perception.pose import DETECTOR_FILE, POSE_FILE, load_pose_estimator

    return Loaded(path, load_pose_estimator(path), _onnx_tensors([path / DETECTOR_FILE, path / POSE_FILE]))


def _onnx_tensors(files: Iterable[Path]) -> list[Tensor]:
    import onnx

    stored = [stored for file in files for stored in onnx.load(file, load_external_data=False).graph.initializer]
    types = [
        torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(each.data_type))).dtype for each in stored
    ]
    return [torch.empty(tuple(each.dims), dtype=kind, device="meta") for each, kind in zip(stored, types, strict=True)]


def _fid_features(path: Path, earlier: Earlier) -> Loaded:
    from perception.features.nets import check_feature_net

    net = check_feature_net(path, "frames")
    return Loaded(path, net, net.state_dict().values())


def _fvd_features(path: Path, earlier: Earlier) -> Loaded:
    from perception.features.nets import check_feature_net

    net = check_feature_net(path, "videos")
    return Loaded(path, net, net.state_dict().values())


LOADERS: Mapping[str, Callable[[Path, Earlier], Loaded]] = {
    "transformer": _transformer,
    "vae": _vae,
    "text_encoder": _text_encoder,
    "tokenizer": _tokenizer,
    "scheduler": _scheduler,
    "adapter": _adapter,
    "audio_encoder": _audio_encoder,
    "face_detector": _face_detector,
    "speech_detector": _speech_detector,
    "shot_detector": _shot_detector,
    "text_detector": _text_detector,
    "active_speaker": _active_speaker,
    "sync_scorer": _sync_scorer,
    "pose": _pose,
    "quality_scorer": _quality_scorer,
    "captioner": _captioner,
    "fid_features": _fid_features,
    "fvd_features": _fvd_features,
    "face_identity": _face_identity,
}
