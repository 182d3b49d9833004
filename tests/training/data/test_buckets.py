from collections import Counter

import numpy as np
import pytest

from training.config import DataConfig
from training.data.buckets import Bucket, account_of, token_cap, window_bucket

# Spec training 5.1: size in pixels, tokens of a latent frame, latent frames, video frames and seconds within 30,000.
STRICT = [
    ((400, 720), 1_125, 26, 101, 4.04),
    ((480, 832), 1_560, 19, 73, 2.92),
    ((720, 720), 2_025, 14, 53, 2.12),
    ((720, 1280), 3_600, 8, 29, 1.16),
]
# Spec omniavatar 3.3: the released arithmetic; size, max_tokens, video frames, latent frames, tokens.
OFFICIAL = [
    ((400, 720), 30_000, 105, 27, 30_375),
    ((720, 720), 30_000, 57, 15, 30_375),
    ((528, 960), 30_000, 57, 15, 29_700),
    ((720, 1280), 30_000, 33, 9, 32_400),
    ((400, 720), 60_000, 213, 54, 60_750),
    ((720, 720), 60_000, 117, 30, 60_750),
    ((528, 960), 60_000, 121, 31, 61_380),
    ((720, 1280), 60_000, 65, 17, 61_200),
    ((400, 720), 80_000, 281, 71, 79_875),
    ((720, 720), 80_000, 157, 40, 81_000),
    ((528, 960), 80_000, 161, 41, 81_180),
    ((720, 1280), 80_000, 85, 22, 79_200),
]


@pytest.mark.parametrize(("size", "per_frame", "latents", "frames", "seconds"), STRICT)
def test_the_strict_cap_holds_the_token_table(
    size: tuple[int, int], per_frame: int, latents: int, frames: int, seconds: float
) -> None:
    height, width = size[0] // 8, size[1] // 8
    assert token_cap(height, width, 30_000, "strict") == latents
    assert Bucket(height, width, 1).tokens == per_frame
    assert latents * per_frame <= 30_000 < (latents + 1) * per_frame
    assert (4 * (latents - 1) + 1, frames / 25) == (frames, pytest.approx(seconds))


@pytest.mark.parametrize(("size", "max_tokens", "frames", "latents", "tokens"), OFFICIAL)
def test_the_official_cap_is_that_of_the_released_script(
    size: tuple[int, int], max_tokens: int, frames: int, latents: int, tokens: int
) -> None:
    bucket = Bucket(size[0] // 8, size[1] // 8, token_cap(size[0] // 8, size[1] // 8, max_tokens, "official"))
    assert bucket.frames == latents == (frames + 3) // 4
    assert bucket.tokens == tokens


def test_a_window_is_cut_by_clip_length_configuration_and_cap() -> None:
    assert window_bucket(50, 90, 7, DataConfig()).frames == 7
    assert window_bucket(50, 90, 100, DataConfig()).frames == 26
    assert window_bucket(50, 90, 100, DataConfig(token_rule="official")).frames == 27
    assert window_bucket(50, 90, 100, DataConfig(max_latents=13)) == Bucket(50, 90, 13)


def test_a_window_is_the_longest_duration_that_fits_clip_and_cap() -> None:
    config = DataConfig(durations=(21, 5, 13))
    lengths = {frames: window_bucket(60, 104, frames, config).frames for frames in (4, 5, 12, 13, 18, 19, 20, 39)}
    assert lengths == {4: 0, 5: 5, 12: 5, 13: 13, 18: 13, 19: 13, 20: 13, 39: 13}  # the cap at 480p is 19
    assert window_bucket(50, 90, 39, config).frames == 21
    assert window_bucket(90, 160, 39, config).frames == 5


def test_clips_that_are_too_short_or_too_large_have_no_window() -> None:
    config = DataConfig(min_latents=4, longest_side=832)
    assert [window_bucket(60, 104, frames, config).frames for frames in (3, 4)] == [0, 4]
    assert window_bucket(104, 60, 9, config).frames == 9
    assert window_bucket(90, 160, 9, config).frames == window_bucket(160, 90, 9, config).frames == 0


def test_durations_and_readers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="durations holds 0"):
        DataConfig(durations=(5, 0))
    with pytest.raises(ValueError, match="readers is 0"):
        DataConfig(readers=0)


def test_every_reason_is_in_the_account() -> None:
    config = DataConfig(durations=(5, 13), max_latents=20, longest_side=1280)
    sizes = {
        Bucket(60, 104, 39): 2,  # 20 by max_latents, 19 by the cap, 13 by the durations
        Bucket(60, 104, 4): 3,  # shorter than the shortest duration
        Bucket(136, 160, 20): 1,  # 5 frames within the cap
        Bucket(160, 160, 20): 4,  # 4 frames within the cap, and no window so short
        Bucket(90, 240, 9): 3,  # 1,920 pixels wide
        Bucket(240, 90, 9): 2,
    }
    found = account_of(sizes, config)
    assert (found.clips, found.used, found.too_large, found.too_short, found.over_cap) == (15, 3, 5, 3, 4)
    assert found.latent_frames == 78 + 12 + 20 + 80 + 45
    assert (found.used_frames, found.unused_frames) == (2 * 13 + 5, 12 + 80 + 45)
    assert (found.cut_by_length, found.cut_by_cap) == (2 * (19 + 6), 2 * 1 + 15)


def test_the_account_adds_up_whatever_the_clips() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = Counter(Bucket(*(int(rng.integers(2, top)) for top in (120, 120, 60))) for _ in range(20))
        config = DataConfig(
            max_latents=int(rng.integers(0, 40)),
            min_latents=int(rng.integers(1, 5)),
            durations=tuple(int(length) for length in rng.integers(1, 40, int(rng.integers(0, 4)))),
            longest_side=int(rng.integers(0, 2)) * 720,
            max_tokens=int(rng.integers(500, 40_000)),
        )
        account = account_of(sizes, config)
        assert account.clips == account.used + account.too_large + account.too_short + account.over_cap == 20
        left_out = account.unused_frames + account.cut_by_length + account.cut_by_cap
        assert account.latent_frames == account.used_frames + left_out
        assert account.used == sum(n for size, n in sizes.items() if window_bucket(*size, config).frames)
