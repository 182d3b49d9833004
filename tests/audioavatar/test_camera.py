"""Cameras: a pixel is a unit, crops and scales show the same, turns keep the pivot."""

import pytest
import torch

from audioavatar.camera import frontal_camera


def test_at_depth_zero_a_unit_is_a_pixel() -> None:
    camera = frontal_camera(64, 48)
    pixel, depth = camera.project(torch.tensor([[3.0, -2, 0], [3, -2, 128]]))
    assert pixel[0].tolist() == [35, 22] and float(depth[0]) == 256
    assert pixel[1].tolist() == pytest.approx([34, 22 + 2 / 3])


def test_back_projection_is_the_inverse() -> None:
    camera = frontal_camera(64, 48)
    pixel, z = torch.rand(20, 2) * 48, torch.rand(20) * 10 - 5
    assert torch.allclose(camera.project(camera.back_project(pixel, z))[0], pixel, atol=1e-4)


def test_scales_and_crops_show_the_same() -> None:
    camera, points = frontal_camera(64, 48), torch.rand(20, 3) * 20
    pixel, _ = camera.project(points)
    assert torch.allclose(camera.scaled(2).project(points)[0], 2 * pixel, atol=1e-4)
    crop = camera.cropped(10, 5, 20, 20)
    assert torch.allclose(crop.project(points)[0], pixel - torch.tensor([10.0, 5]), atol=1e-4)


def test_a_turned_camera_keeps_the_pivot_in_place_and_sees_the_side() -> None:
    camera, pivot = frontal_camera(64, 64), (3.0, -4.0, 6.0)
    turned = camera.turned(20, 10, pivot)
    assert torch.allclose(turned.project(torch.tensor([pivot]))[0], camera.project(torch.tensor([pivot]))[0], atol=1e-3)
    assert float(torch.linalg.det(turned.rotation)) == pytest.approx(1, abs=1e-5)
    # From the right, what is nearer to the viewer than the pivot moves to the left.
    nose = torch.tensor([[3.0, -4.0, 0.0]])
    right = camera.turned(20, 0, pivot)
    assert float(right.project(nose)[0][0, 0]) < float(camera.project(nose)[0][0, 0])
    assert torch.equal(camera.turned(0, 0, pivot).rotation, camera.rotation)
