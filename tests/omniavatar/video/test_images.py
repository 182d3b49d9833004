import cv2
import numpy as np
import pytest
import torch

from omniavatar.video.images import BUCKETS, choose_size, cover, fit_image, nearest_bucket, to_frames


@pytest.mark.parametrize(
    ("source", "longest", "size"),
    [
        ((1080, 1920), 720, (400, 720)),
        ((500, 480), 720, (720, 720)),
        ((1920, 1080), 720, (720, 400)),
        ((1080, 1920), 1280, (528, 960)),
        ((1000, 1777), 1280, (720, 1280)),
    ],
)
def test_the_bucket_has_the_nearest_ratio(source: tuple[int, int], longest: int, size: tuple[int, int]) -> None:
    chosen = choose_size(*source, longest)
    ratio = source[0] / source[1]
    assert abs(chosen[0] / chosen[1] - ratio) <= abs(size[0] / size[1] - ratio)
    with pytest.raises(ValueError, match="999"):
        choose_size(*source, 999)


def test_the_bucket_is_the_published_one_for_every_shape() -> None:
    """Also where the nearest ratio and the nearest logarithm of a ratio differ (0.78: square by one, wide by other)."""
    for longest, sizes in ((720, ((400, 720), (720, 720), (720, 400))), (1280, BUCKETS[1280])):
        for height, width in ((780, 1000), (745, 1000), (1000, 745), (300, 1000), (1000, 690), (720, 1280), (333, 500)):
            ratios = [abs(h / w - height / width) for h, w in sizes]
            assert choose_size(height, width, longest) == sizes[ratios.index(min(ratios))]


def test_among_buckets_of_one_shape_the_nearest_size_is_taken() -> None:
    squares = [(64, 64), (96, 96)]
    assert [nearest_bucket(side, side, squares)[0] for side in (64, 96, 200, 70)] == [64, 96, 96, 64]


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
