"""Scenes tell the truth about their faces, and aligned faces have their points in ArcFace's places."""

import cv2
import numpy as np
import pytest
from insightface.utils.face_align import arcface_dst, estimate_norm

from miniature.train.face_scenes import ARCFACE_POINTS, Person, align, draw_person, draw_scene


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return [draw_person(seed) for seed in range(4)]


def test_scenes_cover_none_one_and_several_faces_of_many_sizes(people) -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(people, 224, rng) for _ in range(150)]
    counts = np.bincount([len(scene.boxes) for scene in scenes])
    assert counts[0] > 5
    assert counts[1] > 30
    assert counts[2:].sum() > 15
    sides = np.concatenate([scene.boxes[:, 2] - scene.boxes[:, 0] for scene in scenes])
    assert sides.min() < 22
    assert sides.max() > 140
    for scene in scenes:
        inside = np.clip(scene.boxes, 0, 224)
        shares = (inside[:, 2:] - inside[:, :2]).prod(1) / (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(1)
        assert (shares > 0.8).all()


def test_keypoints_lie_in_their_box_and_on_dark_pupils() -> None:
    person = draw_person(1_000_002)
    rng = np.random.default_rng(1)
    inside = []
    for _ in range(40):
        scene = draw_scene([person], 160, rng)
        for box, points in zip(scene.boxes, scene.keypoints, strict=True):
            inside.append(((points > box[:2]) & (points < box[2:])).all())
            assert points[0, 0] < points[1, 0]
            assert points[2, 1] < points[3:, 1].min()
    assert len(inside) > 20
    assert np.mean(inside) > 0.98


def test_alignment_equals_insightface() -> None:
    assert np.allclose(ARCFACE_POINTS, arcface_dst)
    person = draw_person(7)
    with pytest.warns(FutureWarning):
        matrix = estimate_norm(person.keypoints[0])
    expected = cv2.warpAffine(person.frames[0], matrix, (112, 112))
    found = align(person.frames[0], person.keypoints[0])
    error = np.abs(found.astype(int) - expected)  # OpenCV rounds positions to 1/32 px
    assert error.mean() < 0.05
    assert error.max() <= 8
