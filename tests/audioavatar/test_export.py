"""3DGS files: the header and numbers that viewers expect."""

from dataclasses import replace

import numpy as np
import torch
from safetensors.torch import load_file

from audioavatar.avatar import Avatar
from audioavatar.export import SH_0, UNITS, write_motion, write_ply, write_sequence
from audioavatar.motion import still
from audioavatar.particles import Particles

NAMES = [
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
]


def read_ply(path) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    """Columns of a binary .ply of floats, read as any viewer does: by its header."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    lines = head.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(next(line for line in lines if line.startswith("element vertex")).split()[2])
    names = [line.split()[2] for line in lines if line.startswith("property float")]
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return dict(zip(names, table.T, strict=True))


def test_a_ply_holds_what_viewers_expect(avatar: Avatar, tmp_path) -> None:  # type: ignore[no-untyped-def]
    particles = avatar.particles
    write_ply(particles, tmp_path / "a.ply")
    columns = read_ply(tmp_path / "a.ply")
    assert list(columns) == NAMES and len(columns["x"]) == len(particles)
    shown = 0.5 + SH_0 * columns["f_dc_1"]
    assert np.allclose(shown, particles.colour[:, 1], atol=1e-6)
    assert np.allclose(np.exp(columns["scale_0"]) * UNITS, particles.log_scale[:, 0].exp(), rtol=1e-5)
    assert np.allclose(1 / (1 + np.exp(-columns["opacity"])), particles.opacity.sigmoid(), atol=1e-6)
    lengths = sum(columns[f"rot_{i}"] ** 2 for i in range(4))
    assert np.allclose(lengths, 1, atol=1e-5) and np.allclose(columns["z"] * UNITS, particles.mean[:, 2], atol=1e-4)


def test_sequence_and_motion_file_agree(avatar: Avatar, tmp_path) -> None:  # type: ignore[no-untyped-def]
    rest = still(avatar, 3)
    head = rest.head.clone()
    head[2, 0] = 5.0
    motion = replace(rest, head=head)
    frames = list(write_sequence(avatar, motion, tmp_path / "frames"))
    canonical, moving = write_motion(avatar, motion, tmp_path)
    assert [path.name for path in frames] == ["frame-00000.ply", "frame-00001.ply", "frame-00002.ply"]
    assert frames[0].read_bytes() == canonical.read_bytes()
    tensors = load_file(moving)
    last = read_ply(frames[2])
    assert (
        np.allclose(tensors["mean"][2, :, 0], last["x"]) and float((tensors["mean"][2] - tensors["mean"][0]).max()) > 0
    )
    assert isinstance(avatar.particles, Particles) and torch.equal(tensors["log_scale"][0], tensors["log_scale"][2])
