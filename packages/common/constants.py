"""Numbers and choices that several folders share."""

from typing import Literal

Reader = Literal["pyav", "decord"]

FPS = 25  # video frames a second, everywhere after the source is probed
AUDIO_RATE = 16_000  # samples a second of all audio that models see
SAMPLES_PER_FRAME = AUDIO_RATE // FPS

FRAMES_PER_LATENT = 4  # video frames of each latent frame after the first, which is one frame
VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp")
)
