"""Standard 3DGS .ply files of particles, one per frame or the canonical one, and files of motion."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from audioavatar.avatar import Avatar, avatar_from, avatar_tensors
from audioavatar.motion import Motion, pose
from audioavatar.particles import Particles
from common.constants import FPS
from common.errors import InputError, MissingFileError
from common.runs import atomic_write

SH_0 = 0.28209479177387814
"""The spherical harmonic of degree 0: viewers show 0.5 + SH_0 * f_dc."""
TALK = "audioavatar-talk-1"
_SCALAR = "<f4"
_NAMES = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
# Pixels of the picture, per unit of the file: viewers expect people of about a unit.
UNITS = 64.0


def write_ply(particles: Particles, path: Path | str, unit: float = UNITS) -> None:
    """Write particles (N,) as a binary .ply that 3DGS viewers open: x right, y down, z away, `unit` px per unit.

    Properties as in the files of the first 3DGS: positions, empty normals, colours as harmonics of degree 0, opacity as
    logit, scales as logarithms, rotations w first.
    """
    columns = {
        "mean": particles.mean / unit,
        "normal": torch.zeros_like(particles.mean),
        "colour": (particles.colour - 0.5) / SH_0,
        "opacity": particles.opacity[:, None],
        "scale": particles.log_scale - float(np.log(unit)),
        "rotation": torch.nn.functional.normalize(particles.quaternion, dim=-1),
    }
    table = torch.cat(list(columns.values()), dim=1).detach().cpu().numpy().astype(_SCALAR)
    properties = "".join(f"property float {name}\n" for name in _NAMES)
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(table)}\n{properties}end_header\n"
    with atomic_write(Path(path)) as temporary:
        temporary.write_bytes(header.encode("ascii") + table.tobytes())


def write_sequence(avatar: Avatar, motion: Motion, folder: Path | str) -> Iterator[Path]:
    """Write `folder`/frame-00000.ply and so on, yielding each path; the mouth's picture has `UNITS` px per unit."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    posed = pose(avatar, motion)
    for t in range(len(motion)):
        path = folder / f"frame-{t:05d}.ply"
        frame = Particles(
            posed.mean[t], posed.quaternion[t], posed.log_scale[t], posed.opacity, posed.colour, posed.part
        )
        write_ply(frame, path)
        yield path


def write_motion(avatar: Avatar, motion: Motion, folder: Path | str) -> tuple[Path, Path]:
    """Write `folder`/canonical.ply and motion.safetensors: `mean` and `log_scale` (T, N, 3) of every frame as in a
    .ply, colours, opacities and rotations being the canonical ones. Returns both paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    canonical, moving = folder / "canonical.ply", folder / "motion.safetensors"
    write_ply(avatar.particles, canonical)
    posed = pose(avatar, motion)
    tensors = {"mean": posed.mean / UNITS, "log_scale": posed.log_scale - float(np.log(UNITS))}
    about = {"about": json.dumps({"format": "audioavatar-motion-1", "fps": FPS})}
    with atomic_write(moving) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)
    return canonical, moving


@dataclass(frozen=True)
class TalkFile:
    """An avatar with its motion; `tracked` (N,) bool marks the particles whose place was given to a fit."""

    avatar: Avatar
    motion: Motion
    tracked: Tensor | None = None


def write_talk(talk: TalkFile, path: Path | str) -> None:
    """Write an avatar and its motion as one safetensors file, which evaluation reads beside the video."""
    tensors = {f"avatar.{name}": tensor for name, tensor in avatar_tensors(talk.avatar).items()}
    tensors |= {f"motion.{name}": tensor for name, tensor in vars(talk.motion).items()}
    if talk.tracked is not None:
        tensors["tracked"] = talk.tracked
    about = {"about": json.dumps({"format": TALK, "builder": talk.avatar.builder})}
    with atomic_write(Path(path)) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)


def read_talk(path: Path | str) -> TalkFile:
    """Read what `write_talk` wrote. Raises FileNotFoundError, or InputError for another file."""
    if not Path(path).is_file():
        raise MissingFileError(f"There is no file of a talk at {path}.")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            if about.get("format") != TALK:
                raise InputError(f"{path} has the format {about.get('format')!r}; expected {TALK!r}.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        named = {name.removeprefix("avatar."): tensor for name, tensor in tensors.items()}
        motion = {name.removeprefix("motion."): each for name, each in tensors.items() if name.startswith("motion.")}
        return TalkFile(avatar_from(named, about["builder"]), Motion(**motion), tensors.get("tracked"))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a file of a talk ({error}).") from error
