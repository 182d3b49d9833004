"""Joint embedding of audio and particle motion: contrast of frames and of windows, retrieval, similarity by offset.

What it measures needs no external network. Legend: B rows, T frames, E width of the embedding.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PATCH, STRIDE = 8, 4  # frames
NEAR = 3  # frames around a positive that are too alike to be negatives
KAPPA, LARGEST_KAPPA = 1 / 0.07, 100.0


def contrast(
    audio: Tensor,
    motion: Tensor,
    kappa: Tensor | float = KAPPA,
    ignored: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """L_frame: mean cross-entropy of rows and columns of kappa times the cosines of pairs (B, E).

    `ignored` (B, B) marks pairs that are neither positive nor negative; `weight` (B,) is how much each row counts.
    """
    logits = similarities(audio, motion) * torch.as_tensor(kappa).clamp(max=LARGEST_KAPPA)
    if ignored is not None:
        logits = logits.masked_fill(ignored, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    both = (F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")) / 2
    return both.mean() if weight is None else (both * weight).sum() / weight.sum()


def similarities(audio: Tensor, motion: Tensor) -> Tensor:
    """Cosines (B, B) of every row (B, E) of one with every row of the other."""
    return F.normalize(audio, dim=-1) @ F.normalize(motion, dim=-1).T


def patches(values: Tensor) -> Tensor:
    """Frames (T, E) -> means of sliding windows ((T - 8) // 4 + 1, E)."""
    return values.unfold(0, PATCH, STRIDE).mean(-1)


def near_frames(clips: int, frames: int) -> Tensor:
    """Mask (clips * frames, same) of other frames of the same clip at most three away."""
    t = torch.arange(clips * frames)
    same = t[:, None] // frames == t // frames
    apart = (t[:, None] - t).abs()
    return same & (apart <= NEAR) & (apart > 0)


def embedding_loss(
    audio: Tensor,
    motion: Tensor,
    kappa: Tensor | float = KAPPA,
    patch_weight: float = 1.0,
    frame_weight: Tensor | None = None,
) -> Tensor:
    """L_sim = L_frame + lambda L_patch of clips (C, T, E); frames beside a positive are no negatives, and
    `frame_weight` (C, T) lets silent ones count less."""
    clips, frames, _ = audio.shape
    weight = None if frame_weight is None else frame_weight.flatten()
    loss = contrast(audio.flatten(0, 1), motion.flatten(0, 1), kappa, near_frames(clips, frames), weight)
    spoken, moved = (torch.cat([patches(clip) for clip in each]) for each in (audio, motion))
    return loss + patch_weight * contrast(spoken, moved, kappa)


def retrieval(audio: Tensor, motion: Tensor) -> float:
    """R@1: the share of rows (B, E) of audio whose own motion is the most alike."""
    best = similarities(audio, motion).argmax(dim=1)
    return float((best == torch.arange(len(best))).float().mean())


def similarity_by_offset(audio: Tensor, motion: Tensor, reach: int = 5) -> Tensor:
    """Mean cosine (2 reach + 1,) of frames (T, E) with motion from `reach` frames earlier to `reach` later."""
    table = similarities(audio, motion)
    return torch.stack([table.diagonal(offset).mean() for offset in range(-reach, reach + 1)])
