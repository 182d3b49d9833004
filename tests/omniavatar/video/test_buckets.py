import pytest

from omniavatar.video.buckets import BUCKETS, choose_size, nearest_bucket


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
