"""A long video as overlapping chunks: arithmetic only.

Video frame 0 is the reference picture itself, so video frame i + 1 goes with audio frame i (25 per second).
"""

from dataclasses import dataclass, replace

from common.errors import InputError
from omniavatar.model.audio_pack import FRAMES_PER_LATENT

FIRST_PREFIX = 1


@dataclass(frozen=True)
class Chunk:
    """One pass of the sampler. It hears audio frames [audio_start - prefix_frames, audio_stop).

    `prefix_frames` video frames are handed in (the picture, or frames of the chunk before), `new_frames` are made, the
    first `remade` of which the chunk before has made too. In the first chunk the one audio frame before `audio_start`
    does not exist: it is zeros. The last chunk may be `shortened` by 4n frames that the video has no use for.
    """

    index: int
    audio_start: int
    audio_stop: int
    prefix_frames: int
    remade: int = 0
    shortened: int = 0

    @property
    def new_frames(self) -> int:
        """Video frames made here, as many as audio frames that are not of the prefix."""
        return self.audio_stop - self.audio_start

    @property
    def frames(self) -> int:
        """Video frames of the whole chunk, 4n + 1."""
        return self.prefix_frames + self.new_frames

    @property
    def latent_frames(self) -> int:
        """T = (frames + 3) / 4."""
        return latent_length(self.frames)

    @property
    def full_latent_frames(self) -> int:
        """T of the chunk before it was shortened."""
        return latent_length(self.frames + self.shortened)

    @property
    def prefix_latents(self) -> int:
        """Latent frames that are given and not generated: 1, then 4 for an overlap of 13."""
        return latent_length(self.prefix_frames)


def latent_length(frames: int) -> int:
    """Latent frames of 4n + 1 pixel frames: n + 1."""
    return (frames + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT


def plan_chunks(
    audio_frames: int, chunk_frames: int, overlap: int = 13, remade: int = 0, full_last_chunk: bool = False
) -> list[Chunk]:
    """Cover `audio_frames` with chunks of `chunk_frames`; the last one ends with the audio, at most 3 frames behind it.

    A chunk is given `overlap` frames of the one before; the last `remade` frames of that are not given and made again.
    With `full_last_chunk` the last chunk has `chunk_frames` too, as in the released code, whatever of it is used.
    Source: scripts/inference.py (lengths, first chunk after one zero audio frame; it remakes nothing). Raises
    ValueError unless both lengths are 4n + 1, `remade` is 4n, all fit into a chunk, and audio_frames >= 1.
    """
    if audio_frames < 1:
        raise InputError(f"audio_frames is {audio_frames}; expected at least one frame of sound.")
    if chunk_frames % 4 != 1 or overlap % 4 != 1 or not 0 < overlap < chunk_frames:
        raise InputError(f"chunk_frames={chunk_frames}, overlap={overlap}; expected 4n + 1 each, overlap the smaller.")
    if remade % FRAMES_PER_LATENT or not 0 <= remade < chunk_frames - overlap:
        raise InputError(
            f"{remade} frames are made again; expected 4n that leave some of chunk_frames={chunk_frames} beside "
            f"overlap={overlap}."
        )
    chunks = [Chunk(0, 0, chunk_frames - FIRST_PREFIX, FIRST_PREFIX)]
    while chunks[-1].audio_stop < audio_frames:
        start = chunks[-1].audio_stop - remade
        chunks.append(Chunk(len(chunks), start, start + chunk_frames - overlap, overlap, remade))
    if not full_last_chunk:
        last = chunks[-1]
        unused = (last.audio_stop - audio_frames) // FRAMES_PER_LATENT * FRAMES_PER_LATENT
        chunks[-1] = replace(last, audio_stop=last.audio_stop - unused, shortened=unused)
    return chunks


def frames_to_remake(wanted: int, chunk_frames: int, overlap: int) -> int:
    """The `wanted` frames (4n), or as many as leave a quarter of a chunk new: short ones would be made of nothing but
    frames that others make too."""
    room = 3 * chunk_frames // 4 - overlap
    return max(0, min(wanted, room // FRAMES_PER_LATENT * FRAMES_PER_LATENT))


def frames_for_tokens(max_tokens: int, height: int, width: int) -> int:
    """Chunk length 4n + 1 for a picture size: 105 for 30,000 tokens at 400x720.

    Source: scripts/inference.py. Its cap bounds frames / 4 and not T, so it is exceeded by up to one latent frame.
    Raises ValueError when not even 5 frames fit.
    """
    raw = max_tokens * 1024 // (height * width)
    frames = raw // 4 * 4 + 1 if raw % 4 else raw - 3
    if frames < 5:
        raise InputError(f"max_tokens={max_tokens} leaves {frames} frames at {height}x{width}; raise it.")
    return frames
