"""Audio pack: wav2vec2 states at the video's frame rate -> one vector, or four tokens, per latent frame.

Shapes: B batch, F pixel frames (4n + 1), T = (F + 3) / 4 latent frames, C audio width.
"""

import torch
from torch import Tensor, nn

from common.constants import FRAMES_PER_LATENT


class AudioPack(nn.Module):
    """(B, F, C) audio states -> (B, T, hidden), four frames to one vector per latent frame.

    Source: paper section 3.2 (audio pack); OmniAvatar/models/audio_pack.py for the LayerNorm and the padding.
    """

    def __init__(self, in_dim: int, hidden: int = 32):
        super().__init__()
        self.in_dim, self.hidden = in_dim, hidden
        self.proj = nn.Linear(FRAMES_PER_LATENT * in_dim, hidden)
        self.norm_out = nn.LayerNorm(hidden)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, F, C) -> (B, T, hidden). Raises ValueError unless F = 4n + 1 and C is the width of this pack."""
        grouped = group_by_latent(audio, self.in_dim).flatten(2)
        return self.norm_out(self.proj(grouped.to(self.proj.weight.dtype)))


class AudioTokens(nn.Module):
    """(B, F, C) audio states -> (B, T, 4, hidden): a token for each pixel frame of a latent frame.

    For the "cross_attention" entry. A learned position embedding tells the four apart.
    """

    def __init__(self, in_dim: int, hidden: int):
        super().__init__()
        self.in_dim, self.hidden = in_dim, hidden
        self.proj = nn.Linear(in_dim, hidden)
        self.norm_out = nn.LayerNorm(hidden)
        self.place = nn.Parameter(0.02 * torch.randn(FRAMES_PER_LATENT, hidden))

    def forward(self, audio: Tensor) -> Tensor:
        """(B, F, C) -> (B, T, 4, hidden). Raises ValueError unless F = 4n + 1 and C is the width of this pack."""
        grouped = group_by_latent(audio, self.in_dim)
        return self.norm_out(self.proj(grouped.to(self.proj.weight.dtype))) + self.place


def group_by_latent(audio: Tensor, width: int) -> Tensor:
    """(B, F, C) -> (B, T, 4, C). Raises ValueError unless F = 4n + 1 and C is `width`."""
    frames, found = audio.shape[1:]
    if frames % FRAMES_PER_LATENT != 1 or found != width:
        raise ValueError(f"Audio of shape {tuple(audio.shape)}; expected (batch, 4n + 1 frames, {width}).")
    # The first latent frame covers one pixel frame: its audio state is repeated to make four.
    first = audio[:, :1].expand(-1, FRAMES_PER_LATENT - 1, -1)
    return torch.cat([first, audio], dim=1).unflatten(1, (-1, FRAMES_PER_LATENT))
