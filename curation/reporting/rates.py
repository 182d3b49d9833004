"""Default costs of stages that no small run has measured, each with its source."""

from collections.abc import Mapping
from dataclasses import dataclass

GB = 1e9
# Assumptions where nothing was measured.
HOURS_PER_VIDEO = 1 / 6
ALIVE = 0.7
KEPT = 0.28  # of the hours, by OmniAvatar's paper: 1,320 of 4,700
BYTES_PER_HOUR = 0.9 * GB  # 720p at 2 Mbit/s
SHARD_BYTES_PER_HOUR = 7.0 * GB  # 11.9 MB for a clip of 6.1 s at 480p
GPU_SHARE = 0.45  # of an H200's measured 790 TFLOP/s


@dataclass(frozen=True)
class Rate:
    """Hours of work per hour of `basis`: on CPU cores alone (`cpu`), or on a GPU (`gpu`; 0: does not use one) plus
    the CPU cores that feed it (`beside`)."""

    basis: str
    cpu: float
    gpu: float
    beside: float
    origin: str


_FLOPS = f"counted operations, {GPU_SHARE:.0%} of an H200 or one core at 0.1 to 0.34 TFLOP/s"
_REAL = "three real clips of 524 to 1080 px, measured"
RATES: Mapping[str, Rate] = {
    "probe": Rate("hours", 0.0005, 0.0, 0.0, "hashing 0.9 GB and reading the container, measured"),
    "scan": Rate("hours", 0.28, 0.0, 0.0, f"CenterFace 5 times a second, {_REAL}; 0.56 more with scan.shots: transnet"),
    "cut": Rate("clip_hours", 0.36, 0.0, 0.0, "one clip of 720p re-encoded, measured"),
    "speech": Rate("clip_hours", 0.012, 0.0, 0.0, "silero-vad on one clip of 4.9 s, measured"),
    "lips": Rate("clip_hours", 0.14, 0.0, 0.0, _REAL),
    "sync": Rate("clip_hours", 0.9, 90e9 / 790e12 / GPU_SHARE, 0.06, _FLOPS),
    "text": Rate("clip_hours", 0.38, 0.0, 0.0, f"PP-OCR's detector, {_REAL}"),
    "quality": Rate("clip_hours", 8.2, 2.1e12 / 790e12 / GPU_SHARE, 0.02, f"one frame a second; {_FLOPS}"),
    "latents": Rate("kept_hours", 148.0, 50.5e12 / 790e12 / GPU_SHARE, 0.06, f"480p; {_FLOPS}"),
}
