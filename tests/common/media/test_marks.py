import json
from pathlib import Path

import av
import numpy as np
import pytest

from common.media.marks import C2PA_UUID, SOURCE_TYPE, VOCABULARY, XMP_BOX, is_generated, mark_tags, read_marks
from common.media.video import read_video
from common.media.write import write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("marks") / "made.mp4"
    write_video(path, FRAMES, np.zeros(3200, np.float32), tags=mark_tags({"steps": 2, "seed": 7}), boxes=XMP_BOX)
    return path


def copied(source: Path, target: Path, **options: str) -> Path:
    """The streams in another container, with the metadata of the whole, as ffmpeg -c copy does."""
    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        new.metadata.update(old.metadata)
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    return target


def test_the_settings_are_read_back(marked: Path) -> None:
    marks = read_marks(marked)
    assert marks["digitalSourceType"] == SOURCE_TYPE and "trainedAlgorithmicMedia" in marks["comment"]
    assert json.loads(marks["generator"]) == {"seed": 7, "steps": 2}
    with av.open(str(marked)) as container:
        assert container.metadata["digitalSourceType"] == SOURCE_TYPE
    assert b'DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trained' in marked.read_bytes()


def test_marks_cost_no_pixel_and_come_out_the_same(marked: Path, tmp_path: Path) -> None:
    again, plain = tmp_path / "again.mp4", tmp_path / "plain.mp4"
    tags = mark_tags({"seed": 7, "steps": 2})
    write_video(again, FRAMES, np.zeros(3200, np.float32), tags=tags, boxes=XMP_BOX)
    write_video(plain, FRAMES, np.zeros(3200, np.float32))
    assert again.read_bytes() == marked.read_bytes() and np.array_equal(read_video(plain), read_video(marked))
    assert not is_generated(plain) and b"cv.iptc.org" not in plain.read_bytes()


@pytest.mark.parametrize("name", ["copy.mp4", "copy.mkv", "copy.mov"])
def test_copying_the_streams_keeps_the_mark(marked: Path, tmp_path: Path, name: str) -> None:
    assert is_generated(copied(marked, tmp_path / name))


def test_another_program_s_mark_is_understood(tmp_path: Path) -> None:
    composite = SOURCE_TYPE.replace("trained", "compositeWithTrained")
    write_video(tmp_path / "tag.mp4", FRAMES, None, tags={"DigitalSourceType": composite})
    write_video(tmp_path / "xmp.mp4", FRAMES, None, boxes=XMP_BOX)
    filmed = {"comment": "about trained algorithms", "digitalSourceType": SOURCE_TYPE.replace("trainedA", "untrainedA")}
    write_video(tmp_path / "filmed.mp4", FRAMES, None, tags=filmed)
    assert read_marks(tmp_path / "tag.mp4") == {"digitalSourceType": composite}
    assert read_marks(tmp_path / "xmp.mp4") == {"digitalSourceType": SOURCE_TYPE}
    assert read_marks(tmp_path / "filmed.mp4") == {}


@pytest.mark.parametrize(
    ("kind", "found"),
    [("trainedAlgorithmicMedia", True), ("compositeWithTrainedAlgorithmicMedia", True), ("digitalCapture", False)],
)
def test_a_manifest_of_c2pa_is_understood(tmp_path: Path, kind: str, found: bool) -> None:
    url = f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}".encode()
    manifest = (
        bytes(4)
        + b"manifest\0"
        + bytes(8)
        + b"jumbf\xa2qdigitalSourceTypex"
        + bytes([len(url)])
        + url
        + b"kdescription"
    )
    box = (24 + len(manifest)).to_bytes(4, "big") + b"uuid" + C2PA_UUID + manifest
    write_video(tmp_path / "a.mp4", FRAMES, None, boxes=box)
    assert read_marks(tmp_path / "a.mp4") == ({"digitalSourceType": VOCABULARY + kind} if found else {})


def test_what_is_no_video_has_no_marks(marked: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("trainedAlgorithmicMedia")
    (tmp_path / "cut.mp4").write_bytes(marked.read_bytes()[:-100])
    assert read_marks(tmp_path / "text.mp4") == read_marks(tmp_path / "absent.mp4") == {}
    assert is_generated(tmp_path / "cut.mp4")  # its packet is damaged, its metadata is not
