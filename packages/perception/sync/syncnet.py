"""SyncNet: lip-sync confidence and distance, and the search for the offset of audio and lips.

Chung and Zisserman, "Out of time: automated lip sync in the wild" (2016), as scored by joonson/syncnet_python.
Legend: T frames at 25 fps, L windows of five frames, S crop side in pixels, E embedding width, V largest shift tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor, nn
from torch.nn import functional as F

from common.constants import SAMPLES_PER_FRAME
from common.errors import MissingFileError, UserError
from common.untrusted.weight_files import refuse_bomb
from perception.features.state_dicts import differences
from perception.sync.mfcc import COEFFICIENTS, mfcc

WINDOW_FRAMES = 5
WINDOW_CEPSTRA, CEPSTRA_PER_FRAME = 20, 4
MIN_FRAMES = WINDOW_FRAMES + 1
_CURVE_FILTER = 9
# Lip frames held as floats, and windows convolved at once: both bound memory, neither changes a number.
_PIECE_FRAMES, _PIECE_WINDOWS = 64, 4


class SyncNetError(UserError, ValueError):
    """A file is not a SyncNet checkpoint, or a track is too short to be scored."""


@dataclass(frozen=True)
class SyncNetWidths:
    """Channels after each convolution, embedding width and crop side; the defaults are those of `syncnet_v2.model`."""

    audio: tuple[int, ...] = (64, 192, 384, 256, 256, 512)
    lips: tuple[int, ...] = (96, 256, 256, 256, 256, 512)
    embedding: int = 1024
    crop_size: int = 224


@dataclass(frozen=True)
class SyncResult:
    """Scores of one track.

    `sync_c` = median - min and `sync_d` = min of the mean distance over shifts; `offset` in frames, positive = the
    audio leads the image; `sync_c_valid` = Sync-C without the windows shifted past the ends; `curve` (L,) per-window
    confidence at the best shift; `distances` (2V+1,) mean distance at each shift, from -V to V frames of audio, and
    `by_window` (L, 2V+1) the distances behind it, those to audio beyond the ends included.
    """

    sync_c: float
    sync_d: float
    offset: int
    sync_c_valid: float
    curve: np.ndarray
    distances: np.ndarray
    by_window: np.ndarray
    windows: int


class SyncNet(nn.Module):
    """Two streams that meet in one embedding: 5 lip frames and 20 cepstra (0.2 s each).

    Names and order of parameters are those of `syncnet_v2.model`. A crop side of 32 (k + 1) pixels ends in a k x k map,
    which the last lip convolution reads whole: k = 6 at 224 pixels.
    """

    def __init__(self, widths: SyncNetWidths = SyncNetWidths()) -> None:
        super().__init__()
        self.crop_size = widths.crop_size
        a, v, last = widths.audio, widths.lips, widths.crop_size // 32 - 1
        self.netcnnaud = nn.Sequential(
            *_block(nn.Conv2d(1, a[0], 3, padding=1)),
            nn.MaxPool2d((1, 1)),
            *_block(nn.Conv2d(a[0], a[1], 3, padding=1)),
            nn.MaxPool2d(3, stride=(1, 2)),
            *_block(nn.Conv2d(a[1], a[2], 3, padding=1)),
            *_block(nn.Conv2d(a[2], a[3], 3, padding=1)),
            *_block(nn.Conv2d(a[3], a[4], 3, padding=1)),
            nn.MaxPool2d(3, stride=2),
            *_block(nn.Conv2d(a[4], a[5], (5, 4))),
        )
        self.netfcaud = _head(a[5], widths.embedding)
        self.netfclip = _head(v[5], widths.embedding)
        self.netcnnlip = nn.Sequential(
            *_block(nn.Conv3d(3, v[0], (WINDOW_FRAMES, 7, 7), stride=(1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block(nn.Conv3d(v[0], v[1], (1, 5, 5), stride=(1, 2, 2), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
            *_block(nn.Conv3d(v[1], v[2], (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(v[2], v[3], (1, 3, 3), padding=(0, 1, 1))),
            *_block(nn.Conv3d(v[3], v[4], (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2)),
            *_block(nn.Conv3d(v[4], v[5], (1, last, last))),
        )

    def embed_audio(self, windows: Tensor) -> Tensor:
        """Cepstra (N, 1, 13, 20) -> (N, E)."""
        return self.netfcaud(self.netcnnaud(windows).flatten(1))

    def embed_lips(self, volume: Tensor) -> Tensor:
        """Crops (B, 3, T, S, S), BGR 0..255 -> (B, T-4, E), one per window of five frames.

        Only the first convolution spans time, so a whole track goes through once, in training as one long volume.
        """
        if self.training:  # batch statistics: nothing can be folded
            features = self.netcnnlip(volume).flatten(2)  # (B, C, T-4)
        else:
            features = torch.stack([self._lip_features(track.transpose(0, 1)) for track in volume])
        batch, channels, windows = features.shape
        rows = features.transpose(1, 2).reshape(batch * windows, channels)
        return self.netfclip(rows).view(batch, windows, -1)

    def _lip_features(self, frames: Tensor) -> Tensor:
        """`netcnnlip` in evaluation: frames (T, 3, S, S) -> (C, T-4), at about half the cost and equal within rounding.

        Convolutions of one moment are two-dimensional, five frames are fifteen channels, channels come last in memory
        (pooling is then five times as fast), batch norms are folded and the first ReLU follows the pooling.
        """
        folded = [_fold(self.netcnnlip[i], self.netcnnlip[i + 1]) for i in (0, 4, 8, 11, 14)]
        windows, maps = len(frames) - WINDOW_FRAMES + 1, []
        for start in range(0, windows, _PIECE_WINDOWS):
            stop = min(start + _PIECE_WINDOWS, windows)
            channels = torch.cat([frames[start + i : stop + i] for i in range(WINDOW_FRAMES)], dim=1)
            x = channels.contiguous(memory_format=torch.channels_last)
            x = F.relu(F.max_pool2d(F.conv2d(x, *folded[0], stride=2), 3, stride=2))
            x = F.max_pool2d(F.relu(F.conv2d(x, *folded[1], stride=2, padding=1)), 3, stride=2, padding=1)
            for weight, bias in folded[2:]:
                x = F.relu(F.conv2d(x, weight, bias, padding=1))
            maps.append(F.max_pool2d(x, 3, stride=2))
        return self.netcnnlip[18:](torch.cat(maps)[:, :, None]).flatten(1).T


def _fold(convolution: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """One filter (O, t * I, k, k) over t frames side by side, and one bias (O,), for a Conv3d and its batch norm."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = (convolution.weight * scale.view(-1, 1, 1, 1, 1)).transpose(1, 2).flatten(1, 2)
    bias = (convolution.bias - norm.running_mean) * scale + norm.bias
    return weight.contiguous(memory_format=torch.channels_last), bias


def _block(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, nn.Module, nn.Module]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _head(channels: int, embedding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU(), nn.Linear(channels, embedding)
    )


def load_syncnet(path: Path | str) -> SyncNet:
    """Read a state dict such as the published `syncnet_v2.model`; widths and crop side follow from its shapes.

    Raises FileNotFoundError, or SyncNetError naming every missing, unexpected, mis-shaped or non-finite tensor.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"SyncNet weights {path} do not exist; expected the file syncnet_v2.model.")
    refuse_bomb(Path(path))
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        widths = _widths(state)
    except (UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise SyncNetError(
            f"{path} is not a SyncNet state dict ({type(error).__name__}); expected tensors named as in "
            "syncnet_v2.model (netcnnaud, netfcaud, netfclip, netcnnlip)."
        ) from error
    net = SyncNet(widths)
    if problems := differences(state, net.state_dict()):
        raise SyncNetError(f"{path} does not fit SyncNet: {'; '.join(problems)}. Fetch syncnet_v2.model again.")
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def _widths(state: Mapping[str, Tensor]) -> SyncNetWidths:
    convolutions = (0, 4, 8, 11, 14, 18)
    return SyncNetWidths(
        audio=tuple(state[f"netcnnaud.{i}.weight"].shape[0] for i in convolutions),
        lips=tuple(state[f"netcnnlip.{i}.weight"].shape[0] for i in convolutions),
        embedding=state["netfclip.3.weight"].shape[0],
        crop_size=32 * (state["netcnnlip.18.weight"].shape[-1] + 1),
    )


def sync_scores(net: SyncNet, crops: np.ndarray, wave: np.ndarray, max_shift: int = 15) -> SyncResult:
    """Score one track: crops (T, S, S, 3) uint8 RGB at 25 fps against its audio (N,) float32 at 16 kHz.

    min(T, N // 640) - 5 windows are compared (the reference drops the last valid one). Raises SyncNetError for crops of
    another side than the network's and for less than six frames of image or audio.
    """
    if crops.shape[1:] != (net.crop_size, net.crop_size, 3):
        raise SyncNetError(
            f"Crops of shape {crops.shape}; this SyncNet expects (T, {net.crop_size}, {net.crop_size}, 3)."
        )
    frames = min(len(crops), len(wave) // SAMPLES_PER_FRAME)
    if frames < MIN_FRAMES:
        raise SyncNetError(
            f"{len(crops)} frames with {len(wave)} samples of sound; sync needs {MIN_FRAMES} frames and "
            f"{MIN_FRAMES * SAMPLES_PER_FRAME} samples at least."
        )
    with torch.inference_mode():
        lips = _lip_embeddings(net, crops[: frames - 1])
        audio = net.embed_audio(audio_windows(mfcc(wave), frames - WINDOW_FRAMES))
    return search_offset(lips, audio, max_shift)


def audio_windows(cepstra: np.ndarray, windows: int) -> Tensor:
    """Cepstra (13, n) -> (windows, 1, 13, 20): window t begins at column 4 t, the first audio of frame t."""
    view = np.lib.stride_tricks.sliding_window_view(cepstra, WINDOW_CEPSTRA, axis=1)
    chosen = view[:, ::CEPSTRA_PER_FRAME][:, :windows].transpose(1, 0, 2)
    return torch.from_numpy(np.ascontiguousarray(chosen)).view(-1, 1, COEFFICIENTS, WINDOW_CEPSTRA)


def lip_volume(crops: np.ndarray) -> Tensor:
    """Crops (T, S, S, 3) uint8 RGB -> (1, 3, T, S, S) float32 BGR 0..255: SyncNet's input is not normalised."""
    return torch.from_numpy(np.ascontiguousarray(crops[..., ::-1])).permute(3, 0, 1, 2)[None].float()


def _lip_embeddings(net: SyncNet, crops: np.ndarray) -> Tensor:
    overlap = WINDOW_FRAMES - 1
    starts = range(0, len(crops) - overlap, _PIECE_FRAMES)
    pieces = (lip_volume(crops[start : start + _PIECE_FRAMES + overlap]) for start in starts)
    return torch.cat([net.embed_lips(piece)[0] for piece in pieces])


def search_offset(lips: Tensor, audio: Tensor, max_shift: int = 15) -> SyncResult:
    """Compare embeddings (L, E) of both streams at every shift from -V to V; beyond the ends the audio is zero.

    Source: joonson/syncnet_python, SyncNetInstance.py `calc_pdist` and `evaluate`.
    """
    windows, shifts = len(lips), 2 * max_shift + 1
    padded = F.pad(audio, (0, 0, max_shift, max_shift))
    per_shift = [F.pairwise_distance(lips, padded[j : j + windows]) for j in range(shifts)]
    distances = torch.stack(per_shift, dim=1).numpy()  # (L, 2V+1)
    mean = distances.mean(axis=0)
    best = int(mean.argmin())
    position = np.arange(windows)[:, None] + np.arange(-max_shift, max_shift + 1)
    inside = (position >= 0) & (position < windows)
    reached = inside.any(axis=0)
    valid = np.where(inside, distances, 0).sum(axis=0)[reached] / inside.sum(axis=0)[reached]
    return SyncResult(
        sync_c=float(np.median(mean) - mean[best]),
        sync_d=float(mean[best]),
        offset=max_shift - best,
        sync_c_valid=float(np.median(valid) - valid.min()),
        curve=median_filter(np.median(mean) - distances[:, best], _CURVE_FILTER, mode="constant"),
        distances=mean,
        by_window=distances,
        windows=windows,
    )
