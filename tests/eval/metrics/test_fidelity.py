"""Closed forms of PSNR and SSIM, and scikit-image as the reference."""

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from eval.features.records import UnscorableError
from eval.metrics.fidelity import fidelity, psnr, ssim


def noise(seed: int, shape: tuple[int, ...] = (40, 48, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def test_a_tenth_of_the_range_everywhere_is_20_db() -> None:
    assert psnr(np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 100 + 51, np.uint8)) == pytest.approx(
        10 * np.log10(25), rel=1e-12
    )  # 51 is a fifth of 255
    first = np.full((10, 10, 3), 100, np.uint8)
    second = first.copy()
    second[::2] += 25
    second[1::2] += 26  # 25.5 is the tenth
    assert psnr(first, second) == pytest.approx(20, abs=0.01)


def test_equal_images_are_perfect_and_capped() -> None:
    assert psnr(noise(0), noise(0)) == 100.0 and ssim(noise(0), noise(0)) == pytest.approx(1.0, abs=1e-12)


def test_both_equal_scikit_image() -> None:
    first = noise(1)
    second = np.clip(first.astype(int) + np.random.default_rng(2).integers(-40, 41, first.shape), 0, 255).astype(
        np.uint8
    )
    expected = structural_similarity(
        first, second, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(first, second) == pytest.approx(expected, abs=1e-4)
    assert psnr(first, second) == pytest.approx(peak_signal_noise_ratio(first, second, data_range=255), rel=1e-9)


def test_videos_are_compared_frame_by_frame_as_far_as_both_go() -> None:
    video = noise(3, (5, 16, 16, 3))
    real = video[:4].copy()
    real[2] = noise(4, (16, 16, 3))
    found = fidelity(video, real)
    assert found.psnr.shape == found.ssim.shape == (4,)
    assert found.psnr[[0, 1, 3]].tolist() == [100.0] * 3 and found.psnr[2] < 12 and found.ssim[2] < 0.2


def test_other_sizes_are_not_compared() -> None:
    with pytest.raises(UnscorableError, match="48x40 px cannot be compared with 16x16 px"):
        fidelity(noise(5)[None], noise(6, (1, 16, 16, 3)))
    with pytest.raises(UnscorableError, match="needs 11 px and got 8x8"):
        fidelity(noise(7, (1, 8, 8, 3)), noise(8, (1, 8, 8, 3)))
