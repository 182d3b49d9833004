"""AudioPack: wav2vec2 states at the frame rate of the picture -> one short vector per latent frame.

Shapes: B batch, F pixel frames (4n + 1), T = (F + 3) / 4 latent frames, C audio width.
"""

from torch import Tensor, cat, nn

FRAMES_PER_LATENT = 4


class AudioPack(nn.Module):
    """(B, F, C) audio states -> (B, T, hidden), four frames to a latent frame.

    Source: paper section 3.2 (audio pack); OmniAvatar/models/audio_pack.py for the LayerNorm and the padding.
    """

    def __init__(self, in_dim: int, hidden: int = 32):
        super().__init__()
        self.in_dim, self.hidden = in_dim, hidden
        self.proj = nn.Linear(FRAMES_PER_LATENT * in_dim, hidden)
        self.norm_out = nn.LayerNorm(hidden)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, F, C) -> (B, T, hidden). Raises ValueError unless F = 4n + 1 and C is the width of this pack."""
        frames, width = audio.shape[1:]
        if frames % FRAMES_PER_LATENT != 1 or width != self.in_dim:
            raise ValueError(f"Audio of shape {tuple(audio.shape)}; expected (batch, 4n + 1 frames, {self.in_dim}).")
        # The first latent frame stands for one pixel frame: repeat its sound to make four of it.
        first = audio[:, :1].expand(-1, FRAMES_PER_LATENT - 1, -1)
        grouped = cat([first, audio], dim=1).unflatten(1, (-1, FRAMES_PER_LATENT)).flatten(2)
        return self.norm_out(self.proj(grouped.to(self.proj.weight.dtype)))
