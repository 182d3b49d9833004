"""Pinhole camera: the one a picture was taken with, and others around the subject."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

DISTANCE = 4.0
"""Of the camera from the subject, in sides of the picture: a field of view of 14 degrees, as of a portrait lens."""


@dataclass(frozen=True)
class Camera:
    """Focal lengths and principal point in px, and the pose: a point m of the world is R m + t before the camera.

    `rotation` (3, 3), `translation` (3,).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    rotation: Tensor
    translation: Tensor

    def scaled(self, factor: float) -> "Camera":
        """The same view in a picture `factor` as large, rounded to even sides as video needs them."""
        width, height = (2 * max(1, round(side * factor / 2)) for side in (self.width, self.height))
        x, y = width / self.width, height / self.height
        return replace(self, width=width, height=height, fx=self.fx * x, fy=self.fy * y, cx=self.cx * x, cy=self.cy * y)

    def cropped(self, x: int, y: int, width: int, height: int) -> "Camera":
        """A window of the same picture."""
        return replace(self, width=width, height=height, cx=self.cx - x, cy=self.cy - y)

    def turned(self, yaw: float, pitch: float = 0.0, pivot: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> "Camera":
        """The camera moved on a sphere around `pivot`, by degrees to the right and upwards."""
        a, b = torch.deg2rad(torch.tensor([yaw, pitch], dtype=torch.float64)).tolist()
        sin, cos = torch.tensor([a, b]).double().sin().tolist(), torch.tensor([a, b]).double().cos().tolist()
        about_y = torch.tensor([[cos[0], 0, sin[0]], [0, 1, 0], [-sin[0], 0, cos[0]]], dtype=torch.float64)
        about_x = torch.tensor([[1, 0, 0], [0, cos[1], -sin[1]], [0, sin[1], cos[1]]], dtype=torch.float64)
        turn = (about_x @ about_y).to(self.rotation)
        centre = torch.tensor(pivot).to(self.rotation)
        return replace(
            self,
            rotation=self.rotation @ turn,
            translation=self.translation + self.rotation @ (centre - turn @ centre),
        )

    def project(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """World points (..., 3) -> pixel positions (..., 2) and depths (...)."""
        view = mean @ self.rotation.to(mean).T + self.translation.to(mean)
        focal = torch.tensor([self.fx, self.fy]).to(mean)
        return view[..., :2] / view[..., 2:] * focal + torch.tensor([self.cx, self.cy]).to(mean), view[..., 2]

    def back_project(self, pixel: Tensor, z: Tensor) -> Tensor:
        """Pixel positions (..., 2) and world z (...) -> world points (..., 3), for a camera that was not turned."""
        depth = (z + self.translation[2].to(z))[..., None]
        centre, focal = torch.tensor([self.cx, self.cy]).to(pixel), torch.tensor([self.fx, self.fy]).to(pixel)
        xy = (pixel - centre) / focal * depth - self.translation[:2].to(pixel)
        return torch.cat([xy, z[..., None]], dim=-1)


def frontal_camera(width: int, height: int, distance: float = DISTANCE) -> Camera:
    """The camera of a picture: at z = 0 a unit of the world is a pixel, the origin is the middle of the picture."""
    focal = distance * max(width, height)
    translation = torch.tensor([0.0, 0.0, focal])
    return Camera(width, height, focal, focal, width / 2, height / 2, torch.eye(3), translation)
