"""Equal content in different containers has one hash; another picture, sound or length has another."""

import shutil
from pathlib import Path

import av
import pytest

from common.executors.config import ExecutorConfig
from common.executors.run import run_stage
from common.ledger.store import Ledger
from common.runs import sha256_file
from curation.dataset.content import ContentStage, hash_content
from tests.curation.conftest import draw_talk, write_talk


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_talk(tmp_path / "clips" / "one.mp4", draw_talk(0, 1.0))


def remuxed(source: Path, target: Path) -> Path:
    """The same packets in another container."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                new.mux(packet)
    return target


def test_content_is_what_is_seen_and_heard(clip: Path, tmp_path: Path) -> None:
    again = remuxed(clip, tmp_path / "again.mkv")
    assert sha256_file(again) != sha256_file(clip) and hash_content(again) == hash_content(clip)
    talk = draw_talk(0, 1.0)
    talk.frames[12, 40:44, 40:44] = 255
    louder = draw_talk(0, 1.0)
    louder.audio[:] *= 1.5
    others = [draw_talk(0, 0.96), talk, louder]
    hashes = {hash_content(write_talk(tmp_path / f"{i}.mp4", each)) for i, each in enumerate(others)}
    assert len(hashes | {hash_content(clip)}) == 4


def test_only_the_recorded_file_is_hashed(clip: Path, tmp_path: Path) -> None:
    rows = [{"unit": "one", "sha256": sha256_file(clip)}]
    ledger, here = Ledger(tmp_path / "ledger"), ExecutorConfig(workers=1)
    kept = tmp_path / "kept.mp4"
    shutil.move(clip, kept)
    (outcome,) = run_stage(ContentStage(clip.parent), rows, ledger, here)
    assert outcome.state == "pending" and "run the curation job again" in outcome.message
    shutil.move(kept, clip)
    (outcome,) = run_stage(ContentStage(clip.parent), rows, ledger, here)
    assert outcome.outputs["content_sha256"] == hash_content(clip)
