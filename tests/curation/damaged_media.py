"""Damage a small valid MP4 file in many ways and bring each case through probe, scan and cut.

    python tests/curation/damaged_media.py FIRST COUNT

prints a JSON line per case; a case is its number, so any of them can be run again alone. The address space is limited:
what asks for too much memory gets an error as on a full machine.
"""

import json
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from common.executors.stage import Weights
from common.media.write import write_video
from curation.config import CutConfig, PeopleConfig, ScanConfig
from curation.stages.cut import cut_row
from curation.stages.probe import ProbeStage
from curation.stages.scan import ScanStage
from curation.stages.shots import source_fields
from curation.stages.tracks import TracksStage
from perception.faces.detect import Face

MEMORY = 2 << 30  # bytes of address space beyond what the libraries take
CPU_SECONDS = 1200
EXTREMES = (0, 1, 2, 0x7F, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf")
TABLES = (b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"stsd", b"stts", b"ctts", b"stss", b"stsc", b"stsz", b"stco", b"elst")
CUT = CutConfig(min_seconds=0.4, max_seconds=1.0)


class NoFaces:
    """A detector that finds nothing, at no cost."""

    name = "none"

    def detect(self, frame: np.ndarray) -> list[Face]:
        """No faces."""
        return []


def boxes(data: bytes | bytearray, start: int = 0, end: int | None = None) -> list[tuple[bytes, int, int]]:
    """Kind, start and end of every box of a valid MP4 file, with those inside other boxes."""
    found, stop = [], len(data) if end is None else end
    while start + 8 <= stop:
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        found.append((kind, start, start + length))
        if kind in CONTAINERS:
            found += boxes(data, start + 8, start + length)
        start += length
    return found


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of the file."""
    return data[: rng.integers(0, len(data))]


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """A few bits the wrong way round."""
    changed = bytearray(data)
    for place in rng.integers(0, len(data), int(2 ** rng.uniform(0, 8))):
        changed[place] ^= 1 << rng.integers(0, 8)
    return bytes(changed)


def zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of nothing."""
    start = int(rng.integers(0, len(data)))
    length = min(int(2 ** rng.uniform(2, 14)), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def rearranged(data: bytes, rng: np.random.Generator) -> bytes:
    """Two boxes exchanged, one doubled or one removed; lengths of the boxes around them are kept wrong."""
    listed = boxes(data)
    _, a, b = listed[rng.integers(0, len(listed))]
    _, c, d = listed[rng.integers(0, len(listed))]
    way = rng.integers(0, 3)
    if way == 0 and (b <= c or d <= a):
        (a, b), (c, d) = sorted([(a, b), (c, d)])
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    return data[:b] + data[a:] if way == 1 else data[:a] + data[b:]


def other_streams(data: bytes, rng: np.random.Generator) -> bytes:
    """A stream removed, the two exchanged, or one there twice."""
    (_, a, b), (_, c, d) = (box for box in boxes(data) if box[0] == b"trak")
    way = rng.integers(0, 4)
    if way < 2:  # what is called free is passed over
        place = (a, c)[way] + 4
        return data[:place] + b"free" + data[place + 4 :]
    if way == 2:
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    # The second track at the end of the file, in a header of its own: pictures and sound keep their places.
    moov = next(box for box in boxes(data) if box[0] == b"moov")
    header = data[moov[1] + 8 : moov[2]] + data[c:d]
    old = data[: moov[1] + 4] + b"free" + data[moov[1] + 8 :]
    return old + struct.pack(">I4s", 8 + len(header), b"moov") + header


def absurd(data: bytes, rng: np.random.Generator) -> bytes:
    """Numbers of the header that nothing could have: sizes, lengths, counts, time bases."""
    changed, tables = bytearray(data), [box for box in boxes(data) if box[0] in TABLES]
    for _ in range(rng.integers(1, 4)):
        _, start, end = tables[rng.integers(0, len(tables))]
        place = int(rng.integers(start + 8, end - 3)) & ~1
        value = EXTREMES[rng.integers(0, len(EXTREMES))] if rng.integers(0, 4) else int(rng.integers(0, 2**32))
        struct.pack_into(">I", changed, place, value)
    return bytes(changed)


def recoded(data: bytes, rng: np.random.Generator) -> bytes:
    """Another parameter set: picture size, profile and reference frames as the decoder sees them."""
    changed, start = bytearray(data), data.index(b"avcC")
    for place in rng.integers(start + 4, start + 40, rng.integers(1, 6)):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


WAYS: tuple[Callable[[bytes, np.random.Generator], bytes], ...] = (
    truncated, flipped, zeroed, rearranged, other_streams, absurd, absurd, recoded,
)  # fmt: skip


def damaged(data: bytes, number: int) -> tuple[str, bytes]:
    """Case `number` of a file: what was done to it, and what is left."""
    rng = np.random.default_rng(number)
    way = WAYS[number % len(WAYS)]
    return way.__name__, way(data, rng)


def verdicts(path: Path, folder: Path) -> list[str]:
    """What the stages say about one file, as far as it comes."""
    row = {"unit": path.name, "path": str(path), "source": "damaged", "row_index": None}
    said = []
    scan = ScanStage(ScanConfig(), Weights("face_detector", None, ""), folder / "per_frame")
    scan.hold(detector=NoFaces())
    stages = (ProbeStage(), scan, TracksStage(PeopleConfig(), CUT, folder / "per_frame"))
    for stage in stages:
        outcome = stage(row)
        if stage is not stages[-1]:
            said.append(outcome.reason or outcome.state)
        row |= outcome.outputs
        if outcome.state != "kept":
            return said
    # At most three, as the ledger hands them out one by one.
    clips = [source_fields(row) | clip for clip in row["rows"] if clip["duration"] >= CUT.min_seconds][:3]
    for clip in clips:
        outcome = cut_row(folder, clip)
        said.append(outcome.reason or outcome.state)
    return said


def small_video(path: Path) -> bytes:
    """Two seconds of a wandering square and a tone, 64x64."""
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (1, 64, 64, 3), np.uint8), 50, 0)
    for number, frame in enumerate(frames):
        frame[number : number + 12, number : number + 12] = 255
    write_video(path, frames, 0.1 * np.sin(np.arange(32_000) / 8).astype(np.float32), crf=30)
    return path.read_bytes()


def _peak_kb() -> int:
    """Of this process alone: ru_maxrss would begin with what the process that started it had used."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


def main(first: int, count: int) -> None:
    """Run cases and print what became of each."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = small_video(folder / "whole.mp4")
        verdicts(folder / "whole.mp4", folder)  # loads every library
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        for number in range(first, first + count):
            way, data = damaged(whole, number)
            path = folder / f"{number}.mp4"
            path.write_bytes(data)
            begin = time.process_time()
            try:
                said = verdicts(path, folder)
            except Exception as error:
                said = [f"raised {type(error).__name__}: {error}"]
            peak = _peak_kb() // 1024
            line = {"case": number, "way": way, "said": said, "seconds": time.process_time() - begin, "peak_mb": peak}
            print(json.dumps(line), flush=True)
            for file in folder.glob("*.mp4"):
                if file.name != "whole.mp4":
                    file.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
