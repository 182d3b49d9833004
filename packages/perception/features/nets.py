"""Features for FID and FVD from nets the user names by local path.

- FID: NVIDIA's TorchScript `inception-2015-12-05.pt`, called `net(pixels, return_features=True)` on 0..255; or
  pytorch-fid's state dict `pt_inception-2015-12-05-6726825d.pth`.
- FVD: TorchScript `i3d_torchscript.pt`, called `net(video, rescale=..., resize=..., return_features=True)`; or the
  state dict `i3d_pretrained_400.pt`.

TorchScript files contain code, some of which runs when they are loaded: one that may touch other files is refused. A
net may carry its own `input_size` (px); without it the published ones are meant: 299 and 224.

Two protocols. `paper` resizes as pytorch-fid and the usual FVD scripts do: squashed to the net's square, bilinear
without anti-aliasing. `strict` is clean-fid's bicubic with anti-aliasing, and for video a centre crop.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import UserError
from common.untrusted.weight_files import refuse_bomb
from perception.config import Protocol
from perception.features.i3d import I3D
from perception.features.inception import FIDInception
from perception.features.state_dicts import differences

WINDOW = 16  # frames the published I3D protocols look at
STRICT_WINDOWS = 8  # of a clip, not overlapping
FRAME_SIZE, VIDEO_SIZE = 299, 224
# The operators of TorchScript that open files, and those of other libraries.
_REACHES_OUT = re.compile(r"\b(?:save|from_file)\b|\bops\s*\.\s*(?!(?:prim|aten)\b)\w+")


class FeatureError(UserError, ValueError):
    """A feature net or its input that cannot be used; the message says what to change."""


def load_feature_net(path: Path | str, device: str = "cpu") -> nn.Module:
    """A feature net from a TorchScript file or from the state dict of pytorch-fid's Inception or of I3D.

    FeatureError when the file is absent or none of these.
    """
    path = Path(path)
    if not path.is_file():
        raise FeatureError(
            f"{path} does not exist; name a TorchScript file, pt_inception-2015-12-05-6726825d.pth or "
            "i3d_pretrained_400.pt"
        )
    net = _load_torchscript(path) if _is_torchscript(path) else _load_state(path)
    return net.to(device).eval()


def check_feature_net(path: Path | str, sees: Literal["frames", "videos"]) -> nn.Module:
    """The feature net at `path`, nothing computed. FeatureError unless it is for FID (`frames`) or FVD (`videos`)."""
    net = load_feature_net(path)
    forward: Any = net.forward
    scripted = isinstance(net, torch.jit.ScriptModule)
    names = (
        [argument.name for argument in forward.schema.arguments] if scripted else list(signature(forward).parameters)
    )
    if ("rescale" in names) != (sees == "videos"):
        other = "videos" if sees == "frames" else "frames"
        raise FeatureError(f"{path} is a net for {other}, this role needs one for {sees}; exchange the two paths")
    return net


@torch.inference_mode()
def frame_features(
    net: nn.Module,
    frames: np.ndarray,
    protocol: Protocol = "paper",
    generated_size: tuple[int, int] | None = None,
    batch_size: int = 32,
) -> np.ndarray:
    """Features (n, d) float32 of RGB uint8 frames (n, H, W, 3).

    `generated_size` (H, W) first brings real frames to the size of the generated ones (strict protocol). FeatureError
    when the frames are not RGB uint8.
    """
    _check_frames(frames)
    size = int(getattr(net, "input_size", FRAME_SIZE))
    features = []
    for start in range(0, len(frames), batch_size):
        pixels = _channels_first(frames[start : start + batch_size], net)
        if generated_size is not None and tuple(pixels.shape[2:]) != tuple(generated_size):
            pixels = resize(pixels, generated_size, "strict")
        pixels = resize(pixels, (size, size), protocol)
        if protocol == "paper":
            pixels = pixels * (128 / 127.5)  # pytorch-fid centres at 127.5, the net itself at 128
        features.append(net(pixels, return_features=True).float().cpu())
    return torch.cat(features).numpy()


@torch.inference_mode()
def video_features(net: nn.Module, video: np.ndarray, protocol: Protocol = "paper", stride: int = 1) -> np.ndarray:
    """Features (windows, d) float32 of one clip, RGB uint8 (T, H, W, 3): windows of 16 frames, `stride` frames apart.

    `paper`: the first window only, squashed; `strict`: up to 8 windows that do not overlap, centre-cropped.
    FeatureError when the clip is shorter than one window or not RGB uint8.
    """
    _check_frames(video)
    size = int(getattr(net, "input_size", VIDEO_SIZE))
    features = []
    for start in window_starts(len(video), protocol, stride):
        pixels = _channels_first(video[start : start + WINDOW * stride : stride], net)
        if protocol == "strict":
            pixels = resize(_centre_square(pixels), (size, size), "strict") / 127.5 - 1
        argument = pixels.transpose(0, 1)[None]
        raw = protocol == "paper"
        features.append(net(argument, rescale=raw, resize=raw, return_features=True).float().cpu())
    return torch.cat(features).numpy()


def window_starts(frames: int, protocol: Protocol = "paper", stride: int = 1) -> list[int]:
    """First frames of the windows that `video_features` takes from a clip of `frames` frames."""
    span = (WINDOW - 1) * stride + 1
    if frames < span:
        raise FeatureError(f"got a clip of {frames} frames; {WINDOW} frames at stride {stride} need at least {span}")
    last = 1 if protocol == "paper" else STRICT_WINDOWS
    return list(range(0, frames - span + 1, WINDOW * stride))[:last]


def resize(pixels: Tensor, size: tuple[int, int], protocol: Protocol) -> Tensor:
    """Pixels (n, 3, H, W) in 0..255 to (h, w), aspect ignored; float, never rounded back to whole levels."""
    if protocol == "paper":
        return F.interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    return F.interpolate(pixels, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


def _channels_first(frames: np.ndarray, net: nn.Module) -> Tensor:
    weight = next(net.parameters())
    return torch.from_numpy(np.ascontiguousarray(frames)).to(weight.device).permute(0, 3, 1, 2).to(torch.float32)


def _centre_square(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[2:]
    side = min(height, width)
    y, x = (height - side) // 2, (width - side) // 2
    return pixels[:, :, y : y + side, x : x + side]


def _check_frames(frames: np.ndarray) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise FeatureError(f"got frames {frames.shape} {frames.dtype}; features need RGB uint8 (n, height, width, 3)")


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _load_torchscript(path: Path) -> nn.Module:
    with zipfile.ZipFile(path) as archive:
        sources = [archive.read(name).decode() for name in archive.namelist() if re.search(r"/code/.*\.py$", name)]
    if found := [name for source in sources for name in _REACHES_OUT.findall(source)]:
        raise FeatureError(
            f"{path} uses '{found[0]}', which may touch other files and which no feature net needs; it is not run. "
            "Copy the published file again."
        )
    with warnings.catch_warnings():
        # PyTorch would like torch.export instead; the published nets exist as TorchScript only.
        warnings.filterwarnings("ignore", "`torch.jit.load`", DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu")


def _load_state(path: Path) -> nn.Module:
    foreign = f"{path} is neither TorchScript nor a plain state dict; copy the published file again"
    with path.open("rb") as file:
        if file.read(1) not in (b"P", b"\x80"):  # zip, or the pickle of the file of 2018
            raise FeatureError(foreign)
    refuse_bomb(Path(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, IndexError) as error:
        raise FeatureError(foreign) from error
    if not isinstance(state, Mapping):
        raise FeatureError(foreign)
    name, net = (
        ("I3D", I3D()) if "Conv3d_1a_7x7.conv3d.weight" in state else ("pytorch-fid's Inception", FIDInception())
    )
    if problems := differences(state, net.state_dict()):
        raise FeatureError(f"{path} is not {name}: " + "; ".join(problems))
    net.load_state_dict(state)
    return net
