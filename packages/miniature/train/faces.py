"""Trains the miniature's InsightFace pack: a face detector (SCRFD) and a recogniser (ArcFace), written as ONNX files.

    python -m miniature.train.faces --out weights/insightface --minutes 12

Legend: B images, n rows of one stride (cells times anchors), k faces in an image.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize, smooth_l1_loss

from miniature.train.face_nets import ANCHORS, RECOGNISER_FILE, STRIDES, FaceDetectorNet, FaceRecogniserNet, export_pack
from miniature.train.face_scenes import Person, Scene, align, draw_person, draw_scene
from miniature.train.timed import TimedTraining, train_command
from miniature.world.clips import HELD_OUT_SEED
from miniature.world.damage import Damage
from perception.faces.detect import load_face_detector
from perception.faces.tracks import overlap

_SIDES = (96, 128, 160, 192, 256, 384, 384)
_PIXELS = 8 * 192 * 192  # in one batch: fewer images when they are large
# Face sides (geometric mean, in strides) answered for by the two anchors; the outermost reach further.
_ANCHOR_RANGES = ((3.0, 4.25), (4.25, 6.0))
_SHARED = 1.1  # ranges overlap by this factor: a face at a border is learnt by both
_CENTRE, _NEAR = 0.22, 0.4  # shares of the face side: cells within the first are positive, up to the second ignored
_RECOGNISED, _MARGIN, _SHARPNESS = 32, 0.2, 16.0


def targets(scene: Scene, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """What each row of `stride` should say: score (n,) as 1, 0 or -1 (ignore) and box and points (n, 14) in strides."""
    cells = len(scene.image) // stride
    y, x = (axis.ravel().repeat(ANCHORS) * stride for axis in np.indices((cells, cells)))
    anchor = np.tile(np.arange(ANCHORS), cells * cells)
    score, answer = np.zeros(len(x), np.float32), np.zeros((len(x), 14), np.float32)
    for x0, y0, x1, y1 in scene.ignored:
        score[(x > x0) & (x < x1) & (y > y0) & (y < y1)] = -1
    for box, points in zip(scene.boxes, scene.keypoints, strict=True):
        x0, y0, x1, y1 = box
        size = np.sqrt((x1 - x0) * (y1 - y0))
        distance = np.maximum(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2)) / size
        mine = np.isin(anchor, _answering(size, stride))
        # A small face may lie between cells: the nearest ones always answer.
        centre = distance <= max(_CENTRE, 0.5 * stride / size)
        score[mine & (distance < _NEAR) & (score < 1)] = -1
        score[mine & centre] = 1
        sides = np.stack([x - x0, y - y0, x1 - x, y1 - y], axis=1)
        to_points = (points.ravel() - np.tile(np.stack([x, y], axis=1), 5)) if len(points) else np.zeros((len(x), 10))
        answer[centre & mine] = np.concatenate([sides, to_points], axis=1)[centre & mine] / stride
    return score, answer


def _answering(size: float, stride: int) -> list[int]:
    """Which anchors of `stride` answer for a face of this side."""
    found = []
    for index, (low, high) in enumerate(_ANCHOR_RANGES):
        low = 0.0 if (stride, index) == (STRIDES[0], 0) else low * stride / _SHARED
        high = np.inf if (stride, index) == (STRIDES[-1], ANCHORS - 1) else high * stride * _SHARED
        if low <= size < high:
            found.append(index)
    return found


def detection_loss(outputs: tuple[Tensor, ...], scenes: list[Scene]) -> Tensor:
    """Focal score loss, 1 - intersection over union, and the five points; each per positive row."""
    scores, boxes, points = (torch.cat(outputs[i : i + 3], dim=1) for i in (0, 3, 6))
    expected = [[targets(scene, stride) for stride in STRIDES] for scene in scenes]
    truth = torch.from_numpy(np.stack([np.concatenate([s for s, _ in row]) for row in expected]))
    answers = torch.from_numpy(np.stack([np.concatenate([a for _, a in row]) for row in expected]))
    positive = truth > 0
    count = positive.sum().clamp(min=1)
    focus = (truth - scores.sigmoid()).abs().square() * (truth >= 0)
    score_loss = (focus * binary_cross_entropy_with_logits(scores, truth.clamp(min=0), reduction="none")).sum() / count
    found, right = boxes[positive], answers[positive]
    box_loss = (1 - _overlap(found, right[:, :4])).sum() / count
    point_loss = smooth_l1_loss(points[positive], right[:, 4:], reduction="sum", beta=0.2) / (10 * count)
    return score_loss + box_loss + 0.5 * point_loss


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes (n, 4) given as distances to left, top, right and bottom of the same point."""
    least = torch.minimum(first, second)
    shared = (least[:, 0] + least[:, 2]) * (least[:, 1] + least[:, 3])
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (first, second)]
    return shared / (areas[0] + areas[1] - shared)


def train_detector(people: list[Person], out: Path, minutes: float, seed: int) -> FaceDetectorNet:
    """Train the detector for `minutes` on scenes of `people`; resumes from `<out>.ckpt`."""
    net = FaceDetectorNet()
    training = TimedTraining(net, torch.optim.AdamW(net.parameters(), lr=3e-3), out, minutes)
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        side = int(rng.choice(_SIDES))
        scenes = [draw_scene(people, side, rng) for _ in range(_PIXELS // side**2)]
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        loss = detection_loss(net((images.float() - 127.5) / 128), scenes)
        training.update(loss, clip=5.0)
        if training.step % 50 == 0:
            training.record(loss=loss.item())
    return net.eval()


def train_recogniser(people: list[Person], out: Path, minutes: float, seed: int) -> FaceRecogniserNet:
    """Train the recogniser for `minutes` to tell `people` apart by direction, with a margin (CosFace, 2018)."""
    net, identities = FaceRecogniserNet(), nn.Linear(512, len(people), bias=False)
    both = nn.ModuleList([net, identities])
    training = TimedTraining(both, torch.optim.AdamW(both.parameters(), lr=3e-3), out, minutes)
    rng = np.random.default_rng((seed, training.step))
    for _ in training:
        chosen = rng.choice(len(people), min(_RECOGNISED, len(people)), replace=False)
        faces = np.stack([_seen(people[i], rng) for i in chosen])
        embeddings = net((torch.from_numpy(faces).permute(0, 3, 1, 2).float() - 127.5) / 127.5)
        cosine = normalize(embeddings) @ normalize(identities.weight).T
        answers = torch.from_numpy(chosen)
        margin = _MARGIN * nn.functional.one_hot(answers, len(people))
        loss = cross_entropy(_SHARPNESS * (cosine - margin), answers)
        training.update(loss, clip=5.0)
        if training.step % 50 == 0:
            training.record(loss=loss.item())
    return net.eval()


def _seen(person: Person, rng: np.random.Generator) -> np.ndarray:
    """An aligned face with points as inexact as a detector's and the damage of ordinary video."""
    index = int(rng.integers(len(person.frames)))
    points = person.keypoints[index] + rng.normal(0, 0.5, (5, 2)) + rng.normal(0, 0.5, 2)
    damage = Damage(rng.uniform(0, 1.0), rng.uniform(0, 8), exposure=float(np.exp(rng.normal(0, 0.1))), crf=0)
    return align(damage.apply(person.frames[index][None], rng)[0], points)


def measure(pack: Path, clips: int) -> dict[str, float]:
    """On held-out people: share of images with exactly one box, its mean overlap with the true one, mean cosine of
    one person's and of two persons' embeddings, and the share whose nearest other image is of the same person."""
    detector, right, overlaps, faces = load_face_detector(pack), [], [], []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + clips):
        person = draw_person(seed, frames=2)
        for frame, box, points in zip(person.frames, person.boxes, person.keypoints, strict=True):
            found = detector.detect(frame)
            right.append(len(found) == 1)
            overlaps.append(max([float(overlap(face.box[None], box[None]).max()) for face in found], default=0.0))
            faces.append(align(frame, points))
    return {"one_face": float(np.mean(right)), "overlap": float(np.mean(overlaps)), **_recognition(pack, faces)}


def _recognition(pack: Path, faces: list[np.ndarray]) -> dict[str, float]:
    """`faces` (112, 112, 3) come in pairs of the same person."""
    session = onnxruntime.InferenceSession(str(pack / RECOGNISER_FILE), providers=["CPUExecutionProvider"])
    images = (np.stack(faces).transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
    embeddings = session.run(None, {"input.1": images})[0]
    directions = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    cosine, number = directions @ directions.T, np.arange(len(faces))
    same = number[:, None] // 2 == number // 2
    np.fill_diagonal(cosine, -1)
    partner, nearest = number ^ 1, cosine.argmax(axis=1)
    return {
        "same_person": float(cosine[number, partner].mean()),
        "other_person": float(cosine[~same].mean()),
        "nearest_is_same": float((nearest == partner).mean()),
    }


def train(out: Path, minutes: float, seed: int = 0, people: int = 400, judged: int = 60) -> dict[str, float]:
    """Train both networks, three quarters of `minutes` the detector; write the pack `out` and return its figures."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    drawn = [draw_person(seed + i) for i in range(people)]
    detector = train_detector(drawn, out.with_name(out.name + "_detector"), minutes * 3 / 4, seed)
    recogniser = train_recogniser(drawn, out.with_name(out.name + "_recogniser"), minutes / 4, seed)
    export_pack(detector, recogniser, out)
    figures = measure(out, judged)
    out.with_name(out.name + ".jsonl").write_text(json.dumps(figures) + "\n")
    return figures


if __name__ == "__main__":
    train_command(train, minutes=12)
