"""The face pack's training: what each row is taught, that it learns, resumes, and that the pack loads."""

import math

import numpy as np
import pytest
import torch

from miniature.train.face_nets import STRIDES, FaceDetectorNet
from miniature.train.face_scenes import Scene, draw_person, draw_scene
from miniature.train.faces import detection_loss, measure, targets, train
from perception.faces.detect import load_face_detector

EMPTY = np.zeros((0, 4))


def scene_of(*boxes: tuple[float, ...], ignored: np.ndarray = EMPTY, side: int = 128) -> Scene:
    corners = np.array(boxes, float).reshape(-1, 4)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    points = centres[:, None] + np.array([[-4, -4], [4, -4], [0, 0], [-3, 5], [3, 5]])
    return Scene(np.zeros((side, side, 3), np.uint8), corners, points, ignored)


def test_a_face_is_answered_for_by_the_stride_and_anchor_of_its_size() -> None:
    for size, stride, anchor in ((20, 8, 0), (40, 8, 1), (57, 16, 0), (81, 16, 1), (114, 32, 0), (180, 32, 1)):
        low, high = 128 - size / 2, 128 + size / 2
        scene = scene_of((low, low, high, high), side=256)
        scores = {s: targets(scene, s)[0] for s in STRIDES}
        positive = {s: (scores[s] == 1).nonzero()[0] for s in STRIDES}
        assert [s for s in STRIDES if len(positive[s])] == [stride]
        assert set(positive[stride] % 2) == {anchor}


def test_rows_are_taught_distances_in_strides() -> None:
    score, answer = targets(scene_of((40, 36, 80, 92)), 16)  # side 47: shared by both anchors' neighbours
    row = ((64 // 16) * 8 + 64 // 16) * 2
    rows = [row + anchor for anchor in (0, 1) if score[row + anchor] == 1]
    assert rows
    assert answer[rows[0], :4] * 16 == pytest.approx([24, 28, 16, 28])
    assert answer[rows[0], 8:10] * 16 == pytest.approx([-4, 0])  # the nose lies at (60, 64)


def test_hidden_faces_and_edges_of_faces_are_overlooked() -> None:
    score, _ = targets(scene_of((40, 40, 80, 80), ignored=np.array([[96.0, 96, 128, 128]])), 8)
    table = score.reshape(16, 16, 2)
    assert (table[13:, 13:] == -1).all()
    assert table[6, 7].tolist() == [0, -1]  # 12 px above the centre of 40: neither here nor there for its anchor
    assert (table[0, 0] == 0).all()


def test_perfect_rows_cost_nothing_and_silence_costs() -> None:
    scene = scene_of((30, 30, 66, 74))
    wanted = [targets(scene, stride) for stride in STRIDES]
    scores = [torch.from_numpy(20 * (2 * np.clip(s, 0, 1) - 1))[None] for s, _ in wanted]
    answers = [torch.from_numpy(a)[None] for _, a in wanted]
    perfect = (*scores, *(a[..., :4] for a in answers), *(a[..., 4:] for a in answers))
    assert detection_loss(perfect, [scene]).item() < 1e-3
    undecided = (*(torch.zeros_like(s) for s in scores), *perfect[3:])
    rows = sum(int((s >= 0).sum()) for s, _ in wanted)
    positive = sum(int((s > 0).sum()) for s, _ in wanted)
    assert detection_loss(undecided, [scene]).item() == pytest.approx(0.25 * math.log(2) * rows / positive, rel=1e-4)


def test_training_learns_to_find_a_face() -> None:
    torch.manual_seed(0)
    net, rng = FaceDetectorNet(), np.random.default_rng(0)
    people = [draw_person(0), draw_person(1)]
    scenes = [draw_scene(people, 96, rng) for _ in range(4)]
    images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        loss = detection_loss(net((images.float() - 127.5) / 128), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_short_training_is_resumed_and_loads(tmp_path) -> None:
    out = tmp_path / "insightface"
    figures = train(out, minutes=0.01, people=6, judged=2)
    assert set(figures) == {"one_face", "overlap", "same_person", "other_person", "nearest_is_same"}
    names = [tmp_path / f"insightface_{name}.ckpt" for name in ("detector", "recogniser")]
    first = [torch.load(name, weights_only=True) for name in names]
    train(out, minutes=4 * max(state["seconds"] for state in first) / 60, people=6, judged=2)
    second = [torch.load(name, weights_only=True) for name in names]
    assert all(late["step"] > early["step"] for early, late in zip(first, second, strict=True))
    assert load_face_detector(out).detect(np.zeros((64, 64, 3), np.uint8)) == []
    assert set(measure(out, 2)) >= {"one_face", "overlap"}
