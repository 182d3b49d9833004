"""The shipped judges on people and voices they never saw: lip sync, phones and faces of the small world."""

import warnings
from functools import cache

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from miniature.train.face_nets import RECOGNISER_FILE
from miniature.train.face_scenes import align, draw_person
from miniature.train.syncnet import shift_audio
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, DrawnClip, draw_clip
from miniature.world.recorded import record
from miniature.world.voice import N_PHONES
from omniavatar.encoders.audio import load_audio_encoder
from perception.faces.crop import crop_track
from perception.faces.detect import FaceDetector, load_face_detector
from perception.faces.tracks import overlap, track_faces
from perception.sync.syncnet import SyncNet, load_syncnet, sync_scores

PATHS = model_paths()


@pytest.fixture(scope="module")
def net() -> SyncNet:
    return load_syncnet(PATHS["sync_scorer"])


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return load_face_detector(PATHS["face_detector"])


@cache
def held_out(number: int, seconds: float = 3.0) -> DrawnClip:
    """Held-out clip; odd numbers are half bodies. Seeds away from those the trainers report their figures on."""
    return draw_clip(HELD_OUT_SEED + 5000 + number, seconds, "half" if number % 2 else "face")


def crops_of(detector: FaceDetector, frames: np.ndarray, size: int) -> np.ndarray:
    """The face as the pipeline cuts it out: detect, track, crop."""
    boxes = [np.array([face.box for face in detector.detect(frame)]).reshape(-1, 4) for frame in frames]
    track = track_faces(boxes)[0]
    assert (track.start_frame, track.stop_frame) == (0, len(frames))
    return crop_track(frames, track.boxes, size)


def test_planted_offsets_are_found_exactly_through_the_real_detector(net: SyncNet, detector: FaceDetector) -> None:
    leads = list(range(-10, 11, 2))
    for number, lead in enumerate(leads):
        clip = held_out(number)
        crops = crops_of(detector, clip.frames, net.crop_size)
        assert sync_scores(net, crops, shift_audio(clip, lead)).offset == lead, f"clip {number} led by {lead} frames"


def test_true_sound_scores_like_good_clips_do_and_foreign_sound_does_not(net: SyncNet) -> None:
    true, foreign = [], []
    for number in range(12):
        clip, other = held_out(number), held_out((number + 2) % 12)
        crops = crop_track(clip.frames, clip.boxes, net.crop_size)
        true.append(sync_scores(net, crops, clip.audio).sync_c)
        foreign.append(sync_scores(net, crops, other.audio).sync_c)
    assert 7 < np.mean(true) < 11
    assert np.mean(foreign) < 3
    assert min(true) > max(foreign)


def test_judge_tolerates_a_blurred_and_coded_picture(net: SyncNet) -> None:
    for number in range(4):
        clip = held_out(number)
        frames, audio = record(clip, crf=30)
        height, width = frames.shape[1:3]
        soft = [
            cv2.resize(cv2.resize(f, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), (width, height))
            for f in frames
        ]
        result = sync_scores(net, crop_track(np.stack(soft), clip.boxes, net.crop_size), audio)
        clean = sync_scores(net, crop_track(clip.frames, clip.boxes, net.crop_size), clip.audio)
        assert result.offset == 0
        assert result.sync_c > 0.5 * clean.sync_c


def test_curve_falls_where_the_sound_is_wrong(net: SyncNet) -> None:
    clip, other = held_out(0, 5.0), held_out(2, 5.0)
    sound = clip.audio.copy()
    sound[60 * 640 :] = other.audio[60 * 640 :]
    curve = sync_scores(net, crop_track(clip.frames, clip.boxes, net.crop_size), sound).curve
    assert curve[5:50].mean() > curve[70:].mean() + 3


def test_audio_states_tell_the_phones_of_unknown_voices() -> None:
    encoder = load_audio_encoder(PATHS["audio_encoder"])

    def heard(seeds: range) -> tuple[torch.Tensor, torch.Tensor]:
        clips = [draw_clip(seed) for seed in seeds]
        states = torch.cat([encoder.encode(clip.audio) for clip in clips])
        return states, torch.from_numpy(np.concatenate([clip.phones for clip in clips]))

    states, shares = heard(range(40))
    ones = torch.ones(len(states), 1)
    reader = torch.linalg.lstsq(torch.cat([states[:, :48], ones], 1), shares, driver="gelsd").solution
    states, shares = heard(range(HELD_OUT_SEED + 5000, HELD_OUT_SEED + 5010))
    guess = torch.cat([states[:, :48], torch.ones(len(states), 1)], 1) @ reader
    pure = shares.amax(1) >= 0.9
    right = (guess.argmax(1) == shares.argmax(1))[pure].float().mean().item()
    assert shares.shape[1] == N_PHONES
    assert right > 0.9


@pytest.mark.parametrize(("first", "enlarged"), [(0, 1), (1, 1), (0, 2)], ids=["faces", "half bodies", "faces doubled"])
def test_exactly_the_face_is_found(detector: FaceDetector, first: int, enlarged: int) -> None:
    overlaps = []
    for number in range(first, 24, 2):
        clip = held_out(number)
        found = detector.detect(cv2.resize(clip.frames[40], None, fx=enlarged, fy=enlarged))
        assert len(found) == 1, f"clip {number}: {len(found)} faces"
        overlaps.append(overlap(found[0].box[None], clip.boxes[40:41] * enlarged).item())
        points = np.abs(found[0].keypoints - clip.keypoints[40] * enlarged)
        assert points.mean() < 2.5 * enlarged
        assert points.max() < 6 * enlarged
    assert np.mean(overlaps) > 0.85
    assert min(overlaps) > 0.7


def test_two_people_side_by_side_are_two_faces(detector: FaceDetector) -> None:
    for number in range(0, 12, 2):
        pair = np.concatenate([held_out(number).frames[30], held_out((number + 2) % 12).frames[30]], axis=1)
        found = detector.detect(pair)
        assert len(found) == 2
        assert sorted(face.box[0] > 60 for face in found) == [False, True]


def test_a_face_is_seldom_found_where_there_is_none(detector: FaceDetector) -> None:
    rng = np.random.default_rng(0)
    empty = [np.full((96, 96, 3), rng.integers(0, 256, 3), np.uint8) for _ in range(6)]
    empty += [cv2.resize(rng.integers(0, 256, (12, 12, 3)).astype(np.uint8), (96, 96)) for _ in range(6)]
    empty += [cv2.resize(held_out(number).frames[0][62:], (96, 48)) for number in (1, 3, 5, 7, 9, 11)]
    # Lone hands and blotches of noise are taken for faces now and then, about one picture in seven.
    assert sum(len(detector.detect(picture)) for picture in empty) <= 4


def test_faces_are_still_found_in_bad_pictures(detector: FaceDetector) -> None:
    rng = np.random.default_rng(0)
    found = []
    for number in range(12):
        frame = held_out(number).frames[20]
        noisy = np.clip(frame + rng.normal(0, 40, frame.shape), 0, 255).astype(np.uint8)
        found += [len(detector.detect(noisy)), len(detector.detect(cv2.GaussianBlur(frame, (0, 0), 2.5)))]
    assert np.mean(np.array(found) == 1) >= 0.9


def test_embeddings_tell_people_apart() -> None:
    pack = PATHS["face_detector"]
    session = onnxruntime.InferenceSession(str(pack / RECOGNISER_FILE), providers=["CPUExecutionProvider"])
    people = [draw_person(HELD_OUT_SEED + 5000 + number, frames=2) for number in range(30)]
    faces = np.stack([align(p.frames[i], p.keypoints[i]) for p in people for i in (0, 1)])
    embeddings = session.run(None, {"input.1": np.float32(faces.transpose(0, 3, 1, 2) - 127.5) / np.float32(127.5)})[0]
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine = directions @ directions.T
    number = np.arange(60)
    same = cosine[number, number ^ 1]
    np.fill_diagonal(cosine, -1)
    assert same.mean() > cosine[number[:, None] // 2 != number // 2].mean() + 0.5
    assert (cosine.argmax(1) == number ^ 1).mean() > 0.85


def test_face_analysis_runs_the_whole_pack() -> None:
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(name=str(PATHS["face_detector"]), providers=["CPUExecutionProvider"])
    analysis.prepare(ctx_id=-1, det_size=(128, 128))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-image's, in insightface's alignment
        faces = analysis.get(np.ascontiguousarray(held_out(0).frames[10][..., ::-1]))
    assert len(faces) == 1
    assert faces[0].kps.shape == (5, 2)
    assert faces[0].normed_embedding.shape == (512,)
