import io
import json
import tarfile

import numpy as np
import pytest
import safetensors.numpy
from xxhash import xxh3_64_hexdigest

from common.shards.sample import ShardError, pack_sample, pack_tensors, read_tensors, refuse_odd_members

TENSORS = {
    "audio": np.arange(20, dtype=np.float32).reshape(10, 2),
    "latents": np.arange(16 * 4 * 2 * 2, dtype=np.float16).reshape(16, 4, 2, 2),
    "odd": np.arange(3, dtype=np.uint8),
    "scalar": np.array(7),
    "text": np.zeros((0, 4), np.float16),
}


def member() -> bytes:
    return b"".join(bytes(piece) for piece in pack_tensors(TENSORS))


def test_the_library_reads_the_member_and_so_do_we() -> None:
    plain, own = safetensors.numpy.load(member()), read_tensors(np.frombuffer(member(), np.uint8), "it")
    assert set(plain) == set(own) == set(TENSORS)
    for name, expected in TENSORS.items():
        np.testing.assert_array_equal(own[name], expected)
        np.testing.assert_array_equal(plain[name].swapaxes(0, 1) if name == "latents" else plain[name], expected)
        assert own[name].dtype == plain[name].dtype == expected.dtype and own[name].flags.aligned


def test_pieces_lie_in_the_order_a_window_reads_them() -> None:
    header = json.loads(member()[8 : 8 + int.from_bytes(member()[:8], "little")])
    assert list(header) == ["__metadata__", "odd", "scalar", "text", "latents", "audio"]
    # One piece for each tensor read whole, for each latent frame, and for frames 0, 1-4, 5-8 and 9 of the audio.
    assert len(header["__metadata__"]["xxh3_64"]) == 16 * (3 + 4 + 4)
    third = TENSORS["latents"][:, 2].tobytes()
    assert header["__metadata__"]["xxh3_64"][16 * 5 : 16 * 6] == xxh3_64_hexdigest(third)


def test_a_file_that_is_damaged_or_no_member_says_so() -> None:
    data = np.frombuffer(member(), np.uint8).copy()
    data[-1] ^= 1
    with pytest.raises(ShardError, match="it differs from its checksum in 'audio'"):
        read_tensors(data, "it")
    with pytest.raises(ShardError, match="it has no header that can be read"):
        read_tensors(np.zeros(100, np.uint8), "it")


def test_what_cannot_be_stored_is_named() -> None:
    with pytest.raises(ShardError, match="Tensors 'text' of complex64 cannot be stored"):
        pack_sample("a", TENSORS | {"text": np.zeros((2, 2), np.complex64)}, {})


def _sparse(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.pax_headers = 16, {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": name}
    info.pax_headers["GNU.sparse.realsize"] = str(size)
    return info


def test_members_that_are_no_plain_files_of_a_shard_are_refused() -> None:
    def tar(*members: tuple[tarfile.TarInfo, bytes]) -> tarfile.TarFile:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as written:
            for info, content in members:
                written.addfile(info, io.BytesIO(content))
        return tarfile.open(fileobj=io.BytesIO(data.getvalue()))

    plain, link, folder, huge = (tarfile.TarInfo(name) for name in ("a.json", "b.json", "c", "d"))
    plain.size, link.type, link.linkname, folder.type = 2, tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    refuse_odd_members(tar((plain, b"{}")), 10_240)
    for odd in (link, folder, _sparse("s.json", 2**50)):
        with pytest.raises(ShardError, match="no plain file within its shard"):
            refuse_odd_members(tar((plain, b"{}"), (odd, b"0\n" + bytes(14))), 10_240)
    huge.size = 2**40
    cut = io.BytesIO(huge.tobuf() + bytes(512))
    with tarfile.open(fileobj=cut) as opened, pytest.raises((ShardError, tarfile.ReadError)):
        refuse_odd_members(opened, 1024)
