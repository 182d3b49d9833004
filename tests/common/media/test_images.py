"""A picture is read by what it is, never runs or repeats anything, and costs no more than its pixels."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import InputError
from common.media.images import read_image_file

RED = (200, 30, 30)
SECRET = "secret-token"
FOREIGN = {
    "eps": f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n({SECRET}) show\n%%EOF\n".encode(),
    "wmf": bytes.fromhex("d7cdc69a") + SECRET.encode() + bytes(60),
    "ppm": f"P3 {SECRET} 48 255\n".encode(),
    "ppm cut": b"P6 64 48 255\n" + SECRET.encode(),
    "xpm": f'/* XPM */\nstatic char *a[] = {{"2 2 1 1","a c #{SECRET}"}};'.encode(),
    "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///{SECRET}"/></svg>'.encode(),
    "text": f"root:x:0:0:{SECRET}\n".encode() * 9,
    "pdf": b"%PDF-1.4\n" + SECRET.encode(),
    "psd": b"8BPS\0\1" + bytes(20) + SECRET.encode(),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_picture_is_refused_without_repeating_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "face.png"
    path.write_bytes(FOREIGN[kind])
    with pytest.raises(InputError) as error:
        read_image_file(path)
    assert str(path) in str(error.value) and SECRET not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif", "ppm", "jp2", "avif", "mpo"])
def test_pictures_of_every_usual_format_are_read(suffix: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 48), RED)
    image.save(tmp_path / f"a.{suffix}", **({"append_images": [image], "save_all": True} if suffix == "mpo" else {}))
    found = read_image_file(tmp_path / f"a.{suffix}")
    assert found.shape == (48, 64, 3) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - RED).max() < 8


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_is_undone(tag: int, tmp_path: Path) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 16:] = 250, 120
    stored = [
        upright, upright[:, ::-1], upright[::-1, ::-1], upright[::-1], upright.transpose(1, 0, 2),
        np.rot90(upright), np.rot90(upright.transpose(1, 0, 2), 2), np.rot90(upright, -1),
    ][tag - 1]  # fmt: skip
    exif = Image.Exif()
    exif[0x112] = tag
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image_file(tmp_path / "a.png"), upright)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), RED).save(buffer, "PNG")
    content = buffer.getvalue()
    return content[:33] + b"".join(chunks) + content[33:]  # after the header


WORKFLOW = zlib.compress(bytes(80_000_000))  # a workflow of a node-based tool has some MB


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"workflow\0\0" + WORKFLOW)],
        [chunk(b"iTXt", b"workflow\0\1\0\0\0" + WORKFLOW)],
        [chunk(b"tEXt", b"prompt\0" + b"x" * 2**21)] * 4,
    ],
)
def test_text_in_a_png_of_any_size_does_not_matter(chunks: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "workflow.png").write_bytes(png_with(*chunks))
    assert (read_image_file(tmp_path / "workflow.png") == RED).all()


@pytest.mark.parametrize(
    "body", [chunk(b"iCCP", b"p\0\0" + WORKFLOW), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + WORKFLOW)]
)
def test_what_unpacks_without_end_is_damaged(body: bytes, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_with(body))
    with pytest.raises(InputError, match="is damaged"):
        read_image_file(tmp_path / "bomb.png")


def test_gigantic_pictures_are_refused_by_their_header(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "big.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="has too many pixels"):
        read_image_file(tmp_path / "big.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        os.truncate(file.fileno(), 2**31)
    with pytest.raises(InputError, match="2147483648 bytes; give an image file of at most 1 GiB"):
        read_image_file(tmp_path / "sparse.png")


def test_a_length_that_lies_is_damage(tmp_path: Path) -> None:
    content = png_with()
    (tmp_path / "lie.png").write_bytes(content[:8] + b"\xff\xff\xff\xff" + content[12:])
    with pytest.raises(InputError, match="is damaged"):
        read_image_file(tmp_path / "lie.png")


def test_sides_beyond_the_longest_are_averaged_down(tmp_path: Path) -> None:
    Image.new("RGB", (90, 30), RED).save(tmp_path / "wide.png")
    assert read_image_file(tmp_path / "wide.png", longest=40).shape == (10, 30, 3)
    assert read_image_file(tmp_path / "wide.png").shape == (30, 90, 3)
