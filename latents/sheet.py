"""Contact sheet of shards: samples decoded by the VAE, below the frames they were made from."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from common.runs import RunFolder, atomic_write
from common.shards.store import ShardReader
from latents.encode import fit_frames
from latents.job import ReadClip, read_clip
from omniavatar.encoders.vae import WanVAE

COLUMNS = 5  # frames of a clip, spread over what was decoded
MAX_LATENTS = 6  # decoded from the start of a clip: 21 frames


@dataclass(frozen=True)
class Decoded:
    """One sample: PSNR in dB of its decoded frames against the source's, and both as rows of frames (h, w, 3)."""

    clip_id: str
    psnr: float
    rows: np.ndarray


def decode_samples(run: RunFolder, vae: WanVAE, count: int, seed: int = 0, read: ReadClip = read_clip) -> list[Decoded]:
    """The beginning of `count` random samples, or of all there are. Raises ShardError, MediaError,
    FileNotFoundError for a clip whose file is gone."""
    reader = ShardReader(run.shards)
    numbers = np.random.default_rng(seed).permutation(len(reader))[:count]
    return [_decode(reader, run, vae, int(number), read) for number in sorted(numbers)]


def write_sheet(path: Path, decoded: list[Decoded]) -> None:
    """Write a PNG with two rows per sample, source above decoded, with PSNR and clip id. Raises DiskFullError."""
    width = max(sample.rows.shape[1] for sample in decoded)
    strips = [_captioned(sample, width) for sample in decoded]
    done, data = cv2.imencode(".png", cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR))
    assert done
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())


@torch.inference_mode()
def _decode(reader: ShardReader, run: RunFolder, vae: WanVAE, number: int, read: ReadClip) -> Decoded:
    tensors, meta = reader.window(number, MAX_LATENTS)
    latents = torch.from_numpy(tensors["latents"].astype(np.float32))[None].to(vae.mean.device)
    video = (vae.decode(latents)[0].float().cpu().permute(1, 2, 3, 0).numpy() + 1) * 127.5
    frames = video.round().clip(0, 255).astype(np.uint8)
    source, _ = read({**meta, "path": str(run.clips / f"{meta['clip_id']}.mp4")})
    source = fit_frames(source[: len(frames)], frames.shape[1:3])
    error = np.mean((source.astype(np.float32) - frames) ** 2)
    shown = np.linspace(0, len(frames) - 1, min(COLUMNS, len(frames))).round().astype(int)
    rows = [np.concatenate(list(each[shown]), axis=1) for each in (source, frames)]
    return Decoded(meta["clip_id"], float(10 * np.log10(255**2 / max(error, 1e-9))), np.concatenate(rows))


def _captioned(sample: Decoded, width: int) -> np.ndarray:
    height, own = sample.rows.shape[:2]
    strip = np.full((height + 24, width, 3), 255, np.uint8)
    strip[24:, :own] = sample.rows
    text = f"{sample.psnr:.1f} dB  {sample.clip_id}"
    return cv2.putText(strip, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
