"""Trains the miniature's lip-sync judge: SyncNet with narrow layers and 64x64 crops, on the small world's own clips.

    python -m miniature.train.syncnet --out weights/syncnet/syncnet_v2.model --minutes 6

The other moments of the same clip are the wrong answers: same face, same voice, so that only timing can tell.
Legend: B clips, F frames, W windows of five frames, E embedding width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.constants import SAMPLES_PER_FRAME
from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip
from miniature.world.damage import Damage
from miniature.world.recorded import record
from perception.faces.crop import crop_track
from perception.sync.mfcc import mfcc
from perception.sync.syncnet import SyncNet, SyncNetWidths, audio_windows, lip_volume, load_syncnet, sync_scores

WIDTHS = SyncNetWidths((4, 16, 24, 24, 24, 48), (6, 16, 24, 24, 32, 48), embedding=64, crop_size=64)
SYNC_C_TARGET = 8.5
"""Mean Sync-C of true 3 s clips, where the real network's scores of good clips lie (7 to 11)."""
_STORED_SECONDS, _BATCH, _FRAMES = 2.4, 8, 34
_SPARSE = 5  # every fifth window takes part in the comparison between clips


@dataclass(frozen=True)
class StoredClip:
    """What the pipeline would see of one clip: frames (T, H, W, 3) uint8, boxes (T, 4), cepstra (13, n)."""

    frames: np.ndarray
    boxes: np.ndarray
    cepstra: np.ndarray


def store_clip(seed: int, seconds: float = _STORED_SECONDS) -> StoredClip:
    """One drawn clip, a third of them half bodies; one in four went through H.264 and AAC as a file does."""
    clip = draw_clip(seed, seconds, "half" if seed % 3 == 0 else "face")
    frames, audio = record(clip, crf=18 + seed // 4 % 12) if seed % 4 == 1 else (clip.frames, clip.audio)
    return StoredClip(frames, clip.boxes, mfcc(audio))


def detected(boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes (T, 4) as a detector would give them: its own idea of a face's place and size, and noise in every frame."""
    side = (boxes[:, 2:] - boxes[:, :2]).mean()
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    centre = centre + rng.normal(0, 0.035 * side, 2) + rng.normal(0, 0.02 * side, centre.shape)
    half = half * np.exp(rng.normal(0, 0.06)) + rng.normal(0, 0.015 * side, half.shape)
    return np.concatenate([centre - half, centre + half], axis=1)


def draw_damage(rng: np.random.Generator, reconstructed: bool) -> Damage:
    """Mild faults of ordinary video, or (`reconstructed`) the low pass of a decoder at 21 to 28 dB in two of three."""
    if reconstructed and rng.random() < 0.67:
        return Damage(rng.uniform(0, 1.2), rng.uniform(0, 10) * (rng.random() < 0.4), rng.uniform(1.0, 2.4), crf=0)
    return Damage(rng.uniform(0, 0.7) * (rng.random() < 0.4), rng.uniform(0, 6) * (rng.random() < 0.4), crf=0)


def sample(clip: StoredClip, rng: np.random.Generator, reconstructed: bool) -> tuple[np.ndarray, Tensor]:
    """A random stretch: crops (F, 64, 64, 3) uint8 of the damaged image, cepstra windows (W, 1, 13, 20)."""
    # The last window of a clip lacks a column of cepstra, which is why SyncNet's own scoring drops it.
    start = int(rng.integers(len(clip.frames) - _FRAMES))
    stretch = slice(start, start + _FRAMES)
    frames = draw_damage(rng, reconstructed).apply(clip.frames[stretch], rng)
    if reconstructed and rng.random() < 0.4:
        frames = _smear(frames, rng.uniform(0, 0.3))
    gain, lift = np.exp(rng.normal(0, 0.12)), rng.normal(0, 10)
    crops = crop_track(frames, detected(clip.boxes[stretch], rng), WIDTHS.crop_size)
    windows = audio_windows(clip.cepstra[:, 4 * start :], _FRAMES - 4)
    # Loudness moves the log energy only: the other cepstra do not depend on it.
    windows[:, :, 0] += float(rng.normal(0, 1.0))
    return np.clip(crops * gain + lift, 0, 255).astype(np.uint8), windows


def batch(clips: list[StoredClip], rng: np.random.Generator, reconstructed: bool) -> tuple[Tensor, Tensor]:
    """One stretch of each clip: SyncNet's lip input (B, 3, F, 64, 64) and cepstra windows (B, W, 1, 13, 20)."""
    samples = [sample(clip, rng, reconstructed) for clip in clips]
    return torch.cat([lip_volume(crops) for crops, _ in samples]), torch.stack([windows for _, windows in samples])


def _smear(frames: np.ndarray, share: float) -> np.ndarray:
    """Mix each frame with both neighbours, as a decoder with temporal stride does."""
    padded = np.pad(frames, ((1, 1), (0, 0), (0, 0), (0, 0)), mode="edge").astype(np.float32)
    return (share * (padded[:-2] + padded[2:]) + (1 - 2 * share) * padded[1:-1]).astype(np.uint8)


def sync_loss(lips: Tensor, audio: Tensor) -> Tensor:
    """Which audio belongs to these lips, and the reverse: cross-entropy over minus the distance; both (B, W, E).

    The distance itself is the logit, so it gets the scale of the official score. The zero vector that pads the audio
    in `search_offset` is one more wrong answer. Half a weight goes to the same question between clips.
    """
    distance = torch.cdist(lips, audio)
    beyond = lips.norm(dim=-1, keepdim=True)
    within = _both_ways(torch.cat([distance, beyond], dim=-1), distance)
    sparse = torch.cdist(lips[:, ::_SPARSE].flatten(0, 1), audio[:, ::_SPARSE].flatten(0, 1))[None]
    return within + 0.5 * _both_ways(sparse, sparse)


def _both_ways(from_lips: Tensor, from_audio: Tensor) -> Tensor:
    answers = torch.arange(from_lips.shape[1]).expand(len(from_lips), -1)
    return cross_entropy(-from_lips.mT, answers) + cross_entropy(-from_audio, answers)


def measure(net: SyncNet, clips: int, first_seed: int, seconds: float = 3.0) -> dict[str, float]:
    """Share of exact offsets for planted shifts of -10..10 frames; mean Sync-C of true and of another clip's audio."""
    rng = np.random.default_rng(first_seed)
    drawn = [draw_clip(first_seed + i, seconds, ("face", "half")[i % 2]) for i in range(clips)]
    exact, true, other = [], [], []
    for i, clip in enumerate(drawn):
        crops, lead = crop_track(clip.frames, detected(clip.boxes, rng), net.crop_size), int(rng.integers(-10, 11))
        tracks = (shift_audio(clip, lead), clip.audio, drawn[i - 1].audio)
        shifted, own, foreign = (sync_scores(net, crops, track) for track in tracks)
        exact.append(shifted.offset == lead)
        true.append(own.sync_c)
        other.append(foreign.sync_c)
    return {"exact": float(np.mean(exact)), "sync_c": float(np.mean(true)), "sync_c_other": float(np.mean(other))}


def shift_audio(clip: DrawnClip, lead: int) -> np.ndarray:
    """The clip's audio, early by `lead` frames (late when negative), silence where none is left."""
    wave, samples = np.zeros_like(clip.audio), abs(lead) * SAMPLES_PER_FRAME
    if lead >= 0:
        wave[: len(wave) - samples] = clip.audio[samples:]
    else:
        wave[samples:] = clip.audio[:-samples]
    return wave


@torch.no_grad()
def set_scale(net: SyncNet, clips: int) -> float:
    """Scale both embeddings by one number so that true training clips score SYNC_C_TARGET; returns the number.

    Distances scale with the embeddings: this chooses the unit of the score and changes no ranking and no offset.
    """
    factor = SYNC_C_TARGET / measure(net, clips, first_seed=0)["sync_c"]
    for head in (net.netfcaud, net.netfclip):
        for values in head[3].parameters():
            values.mul_(factor)
    return factor


def train(out: Path, minutes: float, seed: int = 0, clips: int = 320, judged: int = 40) -> dict[str, float]:
    """Train for `minutes` (resumes from `<out>.ckpt`), write the state dict `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    net = SyncNet(WIDTHS)
    training = TimedTraining(net, torch.optim.AdamW(net.parameters(), lr=3e-3), out, minutes)
    store = [store_clip(seed + i) for i in range(clips)]
    rng = np.random.default_rng((seed, training.step))
    for progress in training:
        chosen = [store[i] for i in rng.choice(clips, _BATCH, replace=False)]
        crops, windows = batch(chosen, rng, reconstructed=progress > 0.6)
        audio = net.embed_audio(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        loss = sync_loss(net.embed_lips(crops), audio)
        training.update(loss)
        if training.step % 25 == 0:
            training.record(loss=loss.item())
    net.eval().requires_grad_(False)
    scale = set_scale(net, judged)
    figures = {"scale": scale, **measure(net, judged, HELD_OUT_SEED)}
    training.record(final=True, **figures)
    torch.save(net.state_dict(), out)
    load_syncnet(out)
    return figures


if __name__ == "__main__":
    train_command(train, minutes=6)
