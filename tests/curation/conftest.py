"""Small talking "people" whose truth is known, and judges made by hand that can tell it.

The face is a white square of 16 px; how white it is says how loud the voice is at that moment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from common.media.video import cut_clip, read_video
from common.media.write import write_video
from curation.config import PeopleConfig
from curation.stages.shots import Piece
from curation.stages.tracks import clip_fields, find_tracks, write_source_tracks
from perception.faces.crop import crop_track
from perception.sync.mfcc import mfcc
from perception.sync.syncnet import SyncNet, SyncNetWidths, audio_windows, lip_volume
from tests.drawn_face_pack import write_face_pack

FACE = (16, 32, 32, 48)


@dataclass(frozen=True)
class Talk:
    """`frames` (T, H, W, 3) uint8, `audio` (T*640,) float32 and the loudness (T,) 0..1 behind both."""

    frames: np.ndarray
    audio: np.ndarray
    loudness: np.ndarray


def draw_talk(seed: int, seconds: float = 3.2, shift: int = 0, width: int = 64) -> Talk:
    """A person of `seed`; the sound comes `shift` frames late."""
    rng = np.random.default_rng(seed)
    count, spare = round(seconds * 25), 12
    loudness = gaussian_filter1d(rng.standard_normal(count + 2 * spare), 1.0)
    loudness = np.clip(0.5 + 0.3 * loudness / loudness.std(), 0, 1)
    seen = loudness[spare : spare + count]
    background = rng.integers(0, 150, (8, width // 8, 3))
    frames = np.repeat(np.repeat(background, 8, 0), 8, 1)[None].repeat(count, 0).astype(np.uint8)
    # A lamp that wanders, so that no two frames are alike.
    for number in range(count):
        frames[number, 2:8, 2 + number % 40 : 8 + number % 40] = rng.integers(0, 150, 3)
    x0, y0, x1, y1 = FACE
    frames[:, y0:y1, x0:x1] = np.rint(200 + 55 * seen)[:, None, None, None]
    sound = voice(loudness, rng)
    return Talk(frames, sound[(spare - shift) * 640 :][: count * 640], seen)


def voice(loudness: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A gliding train of pulses whose logarithmic energy follows `loudness` (T,): (T*640,) float32."""
    time = np.arange(len(loudness) * 640) / 16_000
    pitch = 130 + 25 * np.sin(2 * np.pi * 1.3 * time + rng.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    pulses = sum(np.cos(k * phase) for k in range(1, 45)) / 45
    level = np.interp(time, (np.arange(len(loudness)) + 0.5) / 25, loudness)
    return (0.5 * np.exp(3 * (level - 1)) * pulses).astype(np.float32)


def write_talk(path: Path, talk: Talk, **options: object) -> Path:
    """Write a Talk as mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, talk.frames, talk.audio, **options)
    return path


def clip_row(path: Path, talk: Talk, name: str = "clip") -> dict[str, object]:
    """The row of a clip that is all of a video, with the `faces` that `with_tracks` makes tracks of."""
    duration = len(talk.frames) / 25
    looks = np.arange(0, duration, 0.2)
    return {
        "unit": name, "clip_id": name, "video_id": path.name, "path": str(path), "source_sha256": name,
        "t_start": 0.0, "t_end": duration, "duration": duration, "width": talk.frames.shape[2], "height": 64,
        "faces": [(float(look), [list(map(float, FACE))]) for look in looks],
    }  # fmt: skip


def with_tracks(folder: Path, row: dict[str, Any]) -> dict[str, Any]:
    """The row of a clip with the tracks of its `faces` in a file of `folder`, as the tracks stage leaves it."""
    row = row | {"clip_id": row["unit"]}
    piece = Piece(row, row["faces"])  # type: ignore[arg-type]
    tracks = find_tracks(PeopleConfig(), piece)
    file = write_source_tracks(folder, row["unit"], [piece], [tracks])
    fields = clip_fields(piece, tracks, (row["width"], row["height"]))
    return {name: value for name, value in row.items() if name != "faces"} | fields | {"tracks_file": file}


@pytest.fixture(scope="session")
def face_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that finds the white squares."""
    return write_face_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="session")
def syncnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SyncNet that measures loudness: its lip stream by brightness, its sound stream by the first cepstrum.

    All convolutions hand the middle value on; the last lip layer is fitted to bring both to the same scale.
    """
    net = SyncNet(SyncNetWidths((1,) * 6, (1,) * 6, embedding=1, crop_size=64)).eval().requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[..., layer.kernel_size[-2] // 2, layer.kernel_size[-1] // 2] = 1
        if isinstance(layer, torch.nn.Linear):
            layer.weight.fill_(1)
            layer.bias.zero_()
    net.netcnnlip[0].weight.div_(3)  # the mean of three colours
    net.netcnnlip[0].weight[:, :, [0, 1, 3, 4]] = 0  # in the middle one of the five frames
    # Of the cepstra only the first, the energy, has nothing above it: made positive, the others cancel each other.
    net.netcnnaud[0].bias.fill_(60)
    net.netcnnaud[4].weight[..., 0, 1] = -20
    net.netcnnaud[4].bias.fill_(-73)  # silence, whose energy has no bottom, is as loud as a whisper
    net.netcnnaud[18].weight.zero_()
    net.netcnnaud[18].weight[:, :, 0, 1:3] = 1 / 2  # the energy in the middle of the window
    talk, folder = draw_talk(0, 8.0), tmp_path_factory.mktemp("syncnet")
    # Coded twice, as a source and as a clip.
    cut_clip(write_talk(folder / "source.mp4", talk), folder / "clip.mp4", 0, 8)
    crops = crop_track(read_video(folder / "clip.mp4"), np.tile(np.array(FACE, float), (200, 1)), net.crop_size)
    lips = net.embed_lips(lip_volume(crops[:-1]))[0].numpy().ravel()[:190]
    sound = net.embed_audio(audio_windows(mfcc(talk.audio), 190)).numpy().ravel()
    # Around zero, which is what SyncNet's search takes the sound beyond the ends of a clip for.
    slope, level = np.polyfit(lips, sound - sound.mean(), 1)
    net.netfcaud[3].bias.fill_(-float(sound.mean()))
    net.netfclip[3].weight.fill_(float(slope))
    net.netfclip[3].bias.fill_(float(level))
    torch.save(net.state_dict(), folder / "syncnet_v2.model")
    return folder / "syncnet_v2.model"


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[..., tuple[Path, Talk]]:
    """Writes a talk into the `sources` folder of the test."""

    def make(name: str, seed: int, seconds: float = 3.2, shift: int = 0) -> tuple[Path, Talk]:
        talk = draw_talk(seed, seconds, shift)
        return write_talk(tmp_path / "sources" / f"{name}.mp4", talk), talk

    return make
