"""Active speaker detection, frame by frame: Light-ASD (CVPR 2023) with the weights its authors publish.

Liao et al., "A Light Weight Model for Active Speaker Detection". Legend: T frames at 25 fps, 4T cepstra at 100 Hz.
"""

from pathlib import Path
from pickle import UnpicklingError

import cv2
import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor, nn

from common.errors import MissingFileError, UserError
from common.untrusted.weight_files import refuse_bomb
from perception.features.state_dicts import differences
from perception.sync.mfcc import mfcc

CROP_SIDE, FACE_SIDE = 224, 112  # px: the crop of `crop_track`, and the middle of it that the network sees
FPS, CEPSTRA_PER_FRAME = 25, 4
# Scores are averaged over windows of these lengths. The published script lists 1,1,1,2,2,2,3,3,4,5,6 inside a set
# literal, which keeps each once.
WINDOW_SECONDS = (1, 2, 3, 4, 5, 6)
SMOOTHING_FRAMES = 5
_MEAN, _DEVIATION = 0.4161, 0.1688  # of grey values 0..1
_WIDTHS = (32, 64, 128)
_EPSILON = 1e-3


class ActiveSpeakerError(UserError, ValueError):
    """A file is not a Light-ASD checkpoint, or its input has the wrong shape."""


class _Branches(nn.Module):
    """Two paths, kernel 3 and kernel 5, each first across the image or the spectrum and then along time; their sum
    goes through one mixing layer. `first` names the convolution across: "s" (faces) or "m" (cepstra)."""

    def __init__(self, first: str, channels: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        self.first, (inputs, outputs) = first, channels
        flat = first == "m"
        convolution: type[nn.Module] = nn.Conv2d if flat else nn.Conv3d
        norm: type[nn.Module] = nn.BatchNorm2d if flat else nn.BatchNorm3d

        def add(name: str, width: int, kernel: tuple[int, ...], steps: tuple[int, ...] | int = 1) -> None:
            padding = tuple(side // 2 for side in kernel)
            layer = convolution(width, outputs, kernel, stride=steps, padding=padding, bias=False)
            self.add_module(name, layer)
            self.add_module(f"bn_{name}", norm(outputs, eps=_EPSILON))

        for size in (3, 5):
            across, along = ((size, 1), (1, size)) if flat else ((1, size, size), (size, 1, 1))
            add(f"{first}_{size}", inputs, across, 1 if flat else (1, stride, stride))
            add(f"t_{size}", outputs, along)
        add("last", outputs, (1,) * (2 if flat else 3))

    def forward(self, x: Tensor) -> Tensor:
        paths = [self._layer(f"t_{size}", self._layer(f"{self.first}_{size}", x)) for size in (3, 5)]
        return self._layer("last", paths[0] + paths[1])

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return torch.relu(self.get_submodule(f"bn_{name}")(self.get_submodule(name)(x)))


class _Faces(nn.Module):
    """Faces (B, 1, T, 112, 112) -> (B, T, 128): three blocks, the side reduced by 2, 2 and 2, then its maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = _Branches("s", (1, _WIDTHS[0]), stride=2)
        self.block2 = _Branches("s", _WIDTHS[:2])
        self.block3 = _Branches("s", _WIDTHS[1:])

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block1, self.block2):
            x = nn.functional.max_pool3d(block(x), (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        return self.block3(x).amax(dim=(3, 4)).transpose(1, 2)


class _AudioBlock(nn.Module):
    """Cepstra (B, 1, 13, 4T) -> (B, T, 128): three blocks, time reduced by 2 and 2, then the mean over the cepstra."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = _Branches("m", (1, _WIDTHS[0]))
        self.block2 = _Branches("m", _WIDTHS[:2])
        self.block3 = _Branches("m", _WIDTHS[1:])

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block1, self.block2):
            x = nn.functional.max_pool2d(block(x), (1, 3), stride=(1, 2), padding=(0, 1))
        return self.block3(x).mean(dim=2).transpose(1, 2)


class _Detector(nn.Module):
    """One GRU forward in time and one backward over its result, a GELU after each: (B, T, 128) -> (B, T, 128)."""

    def __init__(self) -> None:
        super().__init__()
        self.gru_forward = nn.GRU(_WIDTHS[2], _WIDTHS[2], batch_first=True)
        self.gru_backward = nn.GRU(_WIDTHS[2], _WIDTHS[2], batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.gelu(self.gru_forward(x)[0]).flip(1)
        return nn.functional.gelu(self.gru_backward(x)[0].flip(1))


class ActiveSpeaker(nn.Module):
    """Both streams, their sum, and the detector; names of the parameters as in the published files."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"visualEncoder": _Faces(), "audioEncoder": _AudioBlock(), "GRU": _Detector()})
        # lossV is the auxiliary head that looks at the face alone; it is stored, and used in training only.
        self.lossAV, self.lossV = (nn.ModuleDict({"FC": nn.Linear(_WIDTHS[2], 2)}) for _ in range(2))

    def forward(self, faces: Tensor, cepstra: Tensor) -> Tensor:
        """Logits (B, T), above 0 = speaks, of grey faces (B, T, 112, 112) 0..255 and cepstra (B, 4T, 13)."""
        seen = self.model["visualEncoder"](((faces / 255 - _MEAN) / _DEVIATION)[:, None])
        audio_features = self.model["audioEncoder"](cepstra[:, None].transpose(2, 3))
        return self.lossAV["FC"](self.model["GRU"](seen + audio_features))[..., 1]


def load_active_speaker(path: Path | str, device: str = "cpu") -> ActiveSpeaker:
    """Read a published state dict: `finetuning_TalkSet.model` (material as it comes) or `pretrain_AVA_CVPR.model`.

    Raises FileNotFoundError, or ActiveSpeakerError naming every missing, unexpected, mis-shaped or non-finite tensor.
    """
    if not Path(path).is_file():
        raise MissingFileError(
            f"Active-speaker weights {path} do not exist; expected Light-ASD's finetuning_TalkSet.model."
        )
    refuse_bomb(Path(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    except (UnpicklingError, RuntimeError, EOFError, AttributeError, IndexError) as error:
        raise ActiveSpeakerError(
            f"{path} is not a state dict ({type(error).__name__}); expected Light-ASD's finetuning_TalkSet.model."
        ) from error
    net = ActiveSpeaker()
    if problems := differences(state, net.state_dict()):
        raise ActiveSpeakerError(
            f"{path} does not fit Light-ASD: {'; '.join(problems)}. Fetch the published file again."
        )
    net.load_state_dict(state)
    return net.eval().requires_grad_(False).to(device)


@torch.inference_mode()
def speaking_scores(net: ActiveSpeaker, crops: np.ndarray, wave: np.ndarray) -> np.ndarray:
    """Logits (n,) of one track, above 0 where it speaks, averaged over windows of 1 to 6 s and then over 5 frames.

    Crops (T, 224, 224, 3) uint8 RGB at 25 fps (`crop_track`) and their audio (N,) at 16 kHz; n = min(T, cepstra // 4),
    often one frame less than the crops.
    Raises ActiveSpeakerError for crops of another side.
    """
    if crops.shape[1:] != (CROP_SIDE, CROP_SIDE, 3):
        raise ActiveSpeakerError(f"Crops of shape {crops.shape}; expected (T, {CROP_SIDE}, {CROP_SIDE}, 3).")
    cepstra = torch.from_numpy(mfcc(wave).T.copy())  # (columns, 13)
    frames = min(len(crops), len(cepstra) // CEPSTRA_PER_FRAME)
    edge = (CROP_SIDE - FACE_SIDE) // 2
    inside = slice(edge, edge + FACE_SIDE)
    greys = [cv2.cvtColor(crop[inside, inside], cv2.COLOR_RGB2GRAY) for crop in crops[:frames]]
    if not greys:
        return np.zeros(0)
    cepstra = cepstra[: frames * CEPSTRA_PER_FRAME]
    faces, device = torch.from_numpy(np.stack(greys)).float(), next(net.parameters()).device
    by_length: dict[int, np.ndarray] = {}
    lengths = [min(seconds * FPS, frames) for seconds in WINDOW_SECONDS]
    for length in dict.fromkeys(lengths):  # all windows longer than the clip are the clip
        pieces = []
        for start in range(0, frames, length):
            cepstra_of_window = cepstra[start * CEPSTRA_PER_FRAME : (start + length) * CEPSTRA_PER_FRAME]
            pieces.append(net(faces[None, start : start + length].to(device), cepstra_of_window[None].to(device))[0])
        by_length[length] = torch.cat(pieces).cpu().numpy().astype(np.float64)
    mean = np.mean([by_length[length] for length in lengths], axis=0)
    return uniform_filter1d(mean, SMOOTHING_FRAMES, mode="nearest")
