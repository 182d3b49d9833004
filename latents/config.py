"""The recipe's `latents` section."""

from dataclasses import dataclass
from typing import Literal

from common.errors import InputError
from common.ranges import Count

AudioKind = Literal["features", "waveform"]


@dataclass(frozen=True)
class LatentsConfig:
    """Buckets are (height, width) in pixels, multiples of 16; the defaults are the "480p" set of the paper's system.

    `audio` "waveform" stores 16 kHz audio instead of wav2vec2 states, 32 kB a second instead of 500; training then runs
    wav2vec2. `device` "auto" is a GPU where there is one (on Ray: where `gpus_per_worker` reserves one), `dtype` "auto"
    is bf16 there and fp32 on a CPU. Both change the bytes: on another kind of device latents are encoded again.
    """

    buckets: tuple[tuple[Count, Count], ...] = ((400, 720), (720, 720), (720, 400))
    references: Count = 4
    audio: AudioKind = "features"
    samples_per_shard: Count = 128
    threads: Count = 1
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        for bucket in self.buckets:
            if bucket[0] % 16 or bucket[1] % 16:
                raise InputError(f"bucket {bucket} is not a multiple of 16 in both directions, which the model needs")
