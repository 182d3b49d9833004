"""The canonical avatar: particles, their picture's size, what is behind them, and where the mouth is; as one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioavatar.camera import Camera, frontal_camera
from audioavatar.graph import Graph, neighbour_graph
from audioavatar.particles import Particles
from common.errors import InputError, MissingFileError
from common.runs import atomic_write

FILE = "avatar.safetensors"
FORMAT = "audioavatar-2"
GESTURES = ("blink", "brows", "left hand across", "left hand down", "right hand across", "right hand down")
"""What an avatar does besides speaking: lids are closed at 1, the others are px; left and right as seen."""


@dataclass(frozen=True)
class Mouth:
    """`centre` (2,) in px of the world, `half_width` px, `tilt` radians clockwise, and `line` (P, 2), points
    between the closed lips from corner to corner."""

    centre: Tensor
    half_width: float
    tilt: float
    line: Tensor

    def local(self, xy: Tensor) -> Tensor:
        """Points (..., 2) of the world in the mouth's axes and half widths: corners at (-1, 0) and (1, 0)."""
        return (xy - self.centre) @ self._axes().T / self.half_width

    def to_world(self, vector: Tensor) -> Tensor:
        """Vectors (..., 2) along and across the mouth, in px -> along x and y of the world."""
        return vector @ self._axes()

    def from_world(self, vector: Tensor) -> Tensor:
        """The inverse of `to_world`."""
        return vector @ self._axes().T

    def below_line(self, xy: Tensor) -> Tensor:
        """How far points (..., 2) lie below the lip line, in px; it goes on straight beyond the corners."""
        point, line = self.local(xy), self.local(self.line)
        right = torch.searchsorted(line[:, 0].contiguous(), point[..., 0].contiguous()).clamp(1, len(line) - 1)
        (x0, y0), (x1, y1) = line[right - 1].unbind(-1), line[right].unbind(-1)
        share = ((point[..., 0] - x0) / (x1 - x0).clamp_min(1e-6)).clamp(0, 1)
        return (point[..., 1] - (y0 + share * (y1 - y0))) * self.half_width

    def _axes(self) -> Tensor:
        angle = torch.tensor(self.tilt)
        return torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])


@dataclass(frozen=True)
class Avatar:
    """A person as particles. `backdrop` (H, W, 3) float32 in 0..1 is the picture without the person; `face` (4,) the
    face's box as x0, y0, x1, y1 in px of the picture; `gestures` (G, N, 2) the offsets of `GESTURES` at 1 each, zero
    for what the picture does not show."""

    particles: Particles
    backdrop: Tensor
    mouth: Mouth
    face: Tensor
    gestures: Tensor
    builder: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture the avatar was built from, as it was built."""
        return self.backdrop.shape[1], self.backdrop.shape[0]

    @property
    def unit(self) -> float:
        """A quarter of the face's width in px, less with a small mouth: motion measured in it carries over from one
        face to another."""
        return min(float(self.face[2] - self.face[0]) / 4, 1.15 * self.mouth.half_width)

    @property
    def gesture_units(self) -> Tensor:
        """What a gesture is measured in (G,), to carry over from one person to another."""
        return torch.tensor([1.0] + [self.unit] * (len(GESTURES) - 1))

    @property
    def camera(self) -> Camera:
        """The camera of the picture."""
        return frontal_camera(*self.size)

    @cached_property
    def graph(self) -> Graph:
        """The neighbour graph of the particles, cut between the lips."""
        return neighbour_graph(self.particles.mean, self.particles.part, lip_line=self.mouth.line)

    def save(self, folder: Path | str) -> Path:
        """Write `folder`/avatar.safetensors, whole or not at all; returns its path."""
        path = Path(folder) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            # One key: safetensors writes several in any order, and the same avatar is to give the same bytes.
            save_file(
                avatar_tensors(self), temporary, {"about": json.dumps({"format": FORMAT, "builder": self.builder})}
            )
        return path


def part_of(avatar: Avatar, index: Tensor) -> Avatar:
    """The same avatar with some of its particles (M,) only."""
    return replace(avatar, particles=avatar.particles.chosen(index), gestures=avatar.gestures[:, index])


def avatar_tensors(avatar: Avatar) -> dict[str, Tensor]:
    """An avatar as named tensors, without the name of its builder."""
    mouth = avatar.mouth
    tensors = {name: tensor.contiguous() for name, tensor in vars(avatar.particles).items()}
    tensors |= {"backdrop": avatar.backdrop, "face": avatar.face, "gestures": avatar.gestures}
    tensors |= {"mouth.centre": mouth.centre, "mouth.line": mouth.line}
    return tensors | {"mouth.frame": torch.tensor([mouth.half_width, mouth.tilt], dtype=torch.float64)}


def avatar_from(tensors: Mapping[str, Tensor], builder: str) -> Avatar:
    """The inverse of `avatar_tensors`; other tensors are ignored. Raises KeyError for one that is missing."""
    half_width, tilt = tensors["mouth.frame"].tolist()
    mouth = Mouth(tensors["mouth.centre"], half_width, tilt, tensors["mouth.line"])
    particles = Particles(**{field.name: tensors[field.name] for field in fields(Particles)})
    return Avatar(particles, tensors["backdrop"], mouth, tensors["face"], tensors["gestures"], builder)


def load_avatar(folder: Path | str) -> Avatar:
    """Read what `Avatar.save` wrote. Raises FileNotFoundError, or InputError for a file that is no avatar."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise MissingFileError(f"There is no {FILE} in {folder}; make one with `omniavatar avatar build`.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise InputError(f"{path} has the format {about.get('format')!r}; expected {FORMAT!r}.")
        return avatar_from(tensors, about["builder"])
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is not an avatar ({error}); build it again with `omniavatar avatar build`."
        ) from error
