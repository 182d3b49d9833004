"""One pass finds the planted cut, the faces and the frames that repeat."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scenedetect import detect
from scenedetect.common import FrameTimecode
from scenedetect.detectors import AdaptiveDetector
from skimage import data

from common.executors.stage import Weights
from common.media.video import decode_stored
from common.media.write import write_video
from curation.config import ScanConfig
from curation.stages import scan as module
from curation.stages.scan import ScanStage, find_cuts, read_scan, scan_stage, small_frame
from miniature.world.clips import draw_clip
from perception.faces.detect import load_face_detector
from tests.curation.conftest import FACE, Talk, draw_talk, write_talk
from tests.perception.judged_material import judge, transition


@pytest.fixture
def scan(face_pack: Path):
    detector = load_face_detector(face_pack)

    def run(path: Path, **options: Any) -> dict:
        stage = ScanStage(ScanConfig(**options), Weights("face_detector", None, ""), path.parent / "per_frame")
        stage.hold(detector=detector)
        outcome = stage({"unit": path.name, "path": str(path)})
        assert outcome.state == "kept" and stage.product_exists({}, outcome)
        return outcome.outputs | read_scan(stage.folder / outcome.outputs["scan_file"])._asdict()

    return run


def joined(*talks: Talk) -> Talk:
    fields = ("frames", "audio", "loudness")
    return Talk(*(np.concatenate([getattr(talk, field) for talk in talks]) for field in fields))


def test_a_cut_is_found_on_its_frame(scan, tmp_path: Path) -> None:
    talk = joined(draw_talk(1, 2.0), draw_talk(2, 2.4))
    assert scan(write_talk(tmp_path / "two.mp4", talk))["cuts"] == [2.0]


def test_cuts_are_in_seconds_also_at_30_fps(scan, tmp_path: Path) -> None:
    talk = joined(draw_talk(1, 2.0), draw_talk(2, 2.4))
    assert scan(write_talk(tmp_path / "two.mp4", talk, fps=30))["cuts"] == [pytest.approx(50 / 30, abs=1e-3)]


def test_faces_are_looked_for_at_the_interval(scan, tmp_path: Path) -> None:
    faces = scan(write_talk(tmp_path / "one.mp4", draw_talk(1, 2.0)))["faces"]
    assert [time for time, _ in faces] == pytest.approx(np.arange(0, 2, 0.2))
    assert all(boxes == [list(map(float, FACE))] for _, boxes in faces)
    assert len(scan(tmp_path / "one.mp4", face_interval=0.5)["faces"]) == 4


def test_motion_tells_repeated_frames(scan, tmp_path: Path) -> None:
    moving = draw_talk(1, 2.0)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "a.mp4", moving))["motion"]) <= 2) < 0.1
    held = Talk(np.repeat(moving.frames[::2], 2, 0), moving.audio, moving.loudness)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "b.mp4", held, crf=6))["motion"]) <= 2) == pytest.approx(
        0.5, abs=0.06
    )
    frozen = Talk(np.repeat(moving.frames[:1], 50, 0), moving.audio, moving.loudness)
    assert np.mean(np.asarray(scan(write_talk(tmp_path / "c.mp4", frozen))["motion"]) <= 2) > 0.95


def test_a_source_is_decoded_once(scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_talk(tmp_path / "one.mp4", draw_talk(1, 2.0))
    decoded = []
    original = module.decode_stored

    def counting(*args, **options):
        for frame in original(*args, **options):
            decoded.append(1)
            yield frame

    monkeypatch.setattr(module, "decode_stored", counting)
    scan(path)
    assert len(decoded) == 50


def test_a_file_that_breaks_on_the_way_is_refused(face_pack: Path, tmp_path: Path) -> None:
    path = write_talk(tmp_path / "broken.mp4", draw_talk(1, 2.0))
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle:-100] = bytes(len(content) - 100 - middle)
    path.write_bytes(content)
    stage = ScanStage(ScanConfig(), Weights("face_detector", face_pack, ""), tmp_path)
    stage.load()
    outcome = stage({"unit": "broken", "path": str(path)})
    assert outcome.state == "rejected" and outcome.reason in ("unreadable", "truncated")


def by_library(config: ScanConfig, pictures: list[np.ndarray]) -> list[int]:
    """The cuts that PySceneDetect's own detector sees in BGR pictures."""
    shots = AdaptiveDetector(config.shot_threshold, config.min_shot, min_content_val=config.shot_min_content)
    return [cut.frame_num for n, one in enumerate(pictures) for cut in shots.process_frame(FrameTimecode(n, 25.0), one)]


def changes_of(pictures: list[np.ndarray]) -> list[float]:
    colours = [cv2.cvtColor(picture, cv2.COLOR_BGR2HSV).astype(int) for picture in pictures]
    return [0.0] + [float(np.abs(b - a).mean()) for a, b in zip(colours, colours[1:], strict=False)]


@pytest.mark.parametrize("seed", range(6))
def test_the_rule_is_that_of_pyscenedetect(seed: int) -> None:
    """Noise that swells, flashes, still pictures and cuts, some nearer than the shortest shot."""
    rng = np.random.default_rng(seed)
    picture, pictures = rng.integers(0, 256, (18, 32, 3)).astype(float), []
    for number in range(160):
        if rng.random() < 0.06:
            picture = rng.integers(0, 256, (18, 32, 3)).astype(float) * rng.uniform(0.2, 1)
        noise = 0 if 60 < number < 90 else rng.uniform(0, 25) * rng.standard_normal(picture.shape)
        pictures.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    for config in (ScanConfig(), ScanConfig(shot_threshold=1.5, min_shot=4), ScanConfig(shot_min_content=40.0)):
        assert find_cuts(config, changes_of(pictures)) == by_library(config, pictures)


def test_a_video_of_few_frames_has_no_cut() -> None:
    assert find_cuts(ScanConfig(), [0.0, 99.0]) == [] == find_cuts(ScanConfig(), [0.0])


def test_cuts_are_those_of_pyscenedetect_on_drawn_people(scan, tmp_path: Path) -> None:
    """Four people of 2, 0.4 (too short), 1.6 and 3 s, found by our pass, the library's detector and its own pass."""
    frames = np.concatenate([draw_clip(seed, s).frames for seed, s in ((1, 2.0), (2, 0.4), (3, 1.6), (4, 3.0))])
    path = tmp_path / "people.mp4"
    write_video(path, frames, None)
    ours = [round(cut * 25) for cut in scan(path)["cuts"]]
    small = [cv2.cvtColor(small_frame(frame), cv2.COLOR_YCrCb2BGR) for frame in decode_stored(path)]
    assert ours == by_library(ScanConfig(), small) == [50, 100]
    assert ours == [first.frame_num for first, _ in detect(str(path), AdaptiveDetector())][1:]


def test_both_readers_scan_alike(scan, tmp_path: Path) -> None:
    path = write_talk(tmp_path / "two.mp4", joined(draw_talk(1, 2.0), draw_talk(2, 2.4)))
    ours, by_decord = scan(path), scan(path, reader="decord")
    assert (ours["cuts"], ours["faces"]) == (by_decord["cuts"], by_decord["faces"])
    # Luma made again from RGB is not the stored luma to the bit.
    still = [np.array(found["motion"]) <= 2 for found in (ours, by_decord)]
    assert np.mean(still[0] == still[1]) > 0.97


def moving(picture: np.ndarray, count: int) -> np.ndarray:
    """A camera that goes slowly over a picture (n, 90, 160, 3)."""
    large = cv2.resize(picture, (240, 135), interpolation=cv2.INTER_AREA)
    return np.stack([large[20 + n // 8 : 110 + n // 8, 10 + n // 2 : 170 + n // 2] for n in range(count)])


def test_a_dissolve_and_a_cut_are_found_by_the_network_and_trimmed(tmp_path: Path) -> None:
    """Frames 22 to 38 dissolve; at frame 70 there is a cut."""
    scenes = [moving(picture, count) for picture, count in ((data.coffee(), 38), (data.chelsea(), 48))]
    frames = transition(*scenes, "dissolve", 16)
    frames = np.concatenate([frames, moving(data.rocket(), 28)])
    write_video(tmp_path / "three.mp4", frames, None)
    row = {"unit": "three", "path": str(tmp_path / "three.mp4"), "sha256": "x"}
    found, models = {}, {"shot_detector": judge("shot_detector")}
    for shots in ("content", "both"):
        stage = scan_stage(ScanConfig(shots=shots, face_interval=100), models, tmp_path)
        stage.load()
        found[shots] = stage(row).outputs
    assert found["content"]["cuts"] == [2.8] and "shot_ends" not in found["content"]
    ends, cuts = found["both"]["shot_ends"], found["both"]["cuts"]
    assert len(cuts) == 2 and ends[1] == cuts[1] == 2.8
    assert ends[0] == pytest.approx(22 / 25, abs=0.17) and cuts[0] == pytest.approx(38 / 25, abs=0.17)
    assert found["both"]["shot_judge"] == "both"


def test_a_network_that_is_asked_for_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scan.shots is transnet and the recipe has no shot_detector"):
        scan_stage(ScanConfig(shots="transnet"), {}, tmp_path)
    named = {"shot_detector": tmp_path / "net.pth"}
    (tmp_path / "net.pth").write_bytes(b"weights")
    plain, asked = (scan_stage(ScanConfig(shots=shots), named, tmp_path) for shots in ("content", "both"))
    assert "shot_detector" not in plain.models and asked.models["shot_detector"]


def test_keypoints_go_with_their_faces(scan, tmp_path: Path) -> None:
    seen = scan(write_talk(tmp_path / "one.mp4", draw_talk(1, 0.6)))
    assert seen["face_judge"] == "insightface" and seen["shot_judge"] == "content"
    assert len(seen["points"]) == len(seen["faces"]) and all(len(five) == 10 for (five,) in seen["points"])
