"""Standard 3DGS .ply files of particles, one per frame or the canonical one, and a motion file beside it."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from audioavatar.avatar import Avatar
from audioavatar.motion import Motion, pose
from audioavatar.particles import Particles
from common.constants import FPS
from common.runs import atomic_write

SH_0 = 0.28209479177387814
"""The spherical harmonic of degree 0: viewers show 0.5 + SH_0 * f_dc."""
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
