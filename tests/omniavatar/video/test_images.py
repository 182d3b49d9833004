import cv2
import numpy as np
import pytest
import torch

from omniavatar.video.images import cover, fit_image, to_frames


@pytest.mark.parametrize("size", [(400, 720), (720, 720), (720, 400), (64, 64)])
def test_the_crop_is_upstreams_where_that_leaves_no_black_line(size: tuple[int, int]) -> None:
    for height, width in ((1080, 1920), (333, 77), (101, 727), (1000, 777), (719, 1281), (640, 480), (511, 513)):
        scale = max(size[0] / height, size[1] / width)
        theirs = int(height * scale), int(width * scale)  # `resize_pad`: negative padding crops
        offsets = [-((wanted - scaled) // 2) for wanted, scaled in zip(size, theirs, strict=True)]
        scaled, crop = cover(height, width, size)
        for ours, own, target, offset, cut in zip(scaled, theirs, size, offsets, crop, strict=True):
            assert ours == max(own, target)
            assert cut == (offset if own >= target else 0)


@pytest.mark.parametrize("size", [(400, 720), (720, 720), (720, 400), (448, 720), (64, 64)])
def test_no_size_leaves_a_black_line(size: tuple[int, int]) -> None:
    # Truncating to whole pixels, as upstream does, falls one line short on some of these.
    for height, width in ((200, 321), (211, 317), (190, 310), (448, 720), (333, 77), (101, 727), (35, 33)):
        fitted = fit_image(np.full((height, width, 3), 200, np.uint8), *size)
        assert fitted.shape == (3, *size)
        assert (fitted - (200 / 127.5 - 1)).abs().max() < 1e-5


def test_the_middle_is_kept() -> None:
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255
    fitted = fit_image(image, 80, 80)
    assert fitted.min() > 0.99 or (fitted[:, :, 2:-2].min() > 0.99)


def test_scaling_down_is_smooth_like_area_averaging() -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 4)
    reference = cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).astype(np.float32) / 127.5 - 1
    assert np.abs(fit_image(image, 64, 64).permute(1, 2, 0).numpy() - reference).mean() < 0.01


def test_frames_round_and_come_back() -> None:
    image = np.random.default_rng(1).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    assert np.array_equal(to_frames(fit_image(image, 16, 16)[:, None])[0], image)
    assert to_frames(torch.full((3, 1, 1, 1), 1.3)).max() == 255


def test_other_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        fit_image(np.zeros((4, 4, 3)), 4, 4)
