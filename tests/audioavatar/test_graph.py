"""The neighbour graph: no forbidden edge, and what label restriction is worth to a mouth that opens."""

import torch

from audioavatar.canonical.procedural import lip_line, motion_basis, procedural_avatar
from audioavatar.graph import allowed_parts, laplacian, neighbour_graph
from audioavatar.particles import Part
from audioavatar.regularisers import arap


def test_no_edge_joins_lips_lids_or_fingers_and_none_crosses_the_lip_line() -> None:
    avatar = procedural_avatar(1200)
    graph = neighbour_graph(avatar.mean, avatar.part, lip_line=lip_line())
    edge = graph.weight > 0
    pairs = {
        (int(a), int(b))
        for row, (neighbours, used) in enumerate(zip(graph.index, edge, strict=True))
        for a in [avatar.part[row]]
        for b in avatar.part[neighbours[used]]
    }
    allowed = allowed_parts(avatar.part)
    assert all(bool(allowed[pair]) for pair in pairs)
    apart = {
        (Part.UPPER_LIP, Part.LOWER_LIP), (Part.LEFT_UPPER_LID, Part.LEFT_LOWER_LID),
        (Part.LEFT_FINGER_1, Part.LEFT_FINGER_1 + 1), (Part.LEFT_HAND, Part.BODY), (Part.RIGHT_FINGER_5, Part.BODY),
    }  # fmt: skip
    assert not pairs & {(int(a), int(b)) for a, b in apart}
    assert (Part.UPPER_LIP, Part.FACE_UPPER) in pairs and (Part.LEFT_HAND, Part.LEFT_ARM) in pairs
    # And a Euclidean graph has them, so the test would see them.
    plain = neighbour_graph(avatar.mean)
    lips = avatar.part == Part.UPPER_LIP
    assert bool((avatar.part[plain.index[lips]] == Part.LOWER_LIP).any())
    x, y = avatar.mean[:, 0], avatar.mean[:, 1]
    low, inside = y > 2.0, x.abs() < 2.5
    across = edge & (low[:, None] != low[graph.index]) & inside[:, None] & inside[graph.index]
    front = avatar.mean[:, 2] < -4
    assert not bool((across & front[:, None] & front[graph.index]).any())


def test_opening_the_mouth_costs_a_twentieth_of_what_it_costs_on_a_euclidean_graph() -> None:
    avatar = procedural_avatar(1200)
    lips = (avatar.part == Part.UPPER_LIP) | (avatar.part == Part.LOWER_LIP)
    mouth = avatar.chosen(lips)
    moved = (mouth.mean + motion_basis(avatar)["jaw"][lips])[None]
    restricted = neighbour_graph(mouth.mean, mouth.part)
    assert float(arap(moved, mouth.mean, restricted)) < 0.05 * float(
        arap(moved, mouth.mean, neighbour_graph(mouth.mean))
    )


def test_weights_fall_with_distance_and_rows_sum_to_one() -> None:
    mean = torch.tensor([[0.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    graph = neighbour_graph(mean, k=2)
    scale = torch.tensor([1.0, 9, 1, 4, 4, 9]).mean()
    first = torch.tensor([(-1 / scale).exp(), (-9 / scale).exp()])
    assert torch.allclose(graph.weight[0], first / first.sum())
    assert graph.index[0].tolist() == [1, 2] and torch.allclose(graph.weight.sum(1), torch.ones(3))


def test_sheets_and_single_particles_have_no_foreign_neighbours() -> None:
    mean = torch.rand(30, 3, generator=torch.Generator().manual_seed(0))
    part = torch.tensor([Part.TEETH] * 10 + [Part.LOWER_LIP] * 19 + [Part.CAVITY])
    graph = neighbour_graph(mean, part)
    assert bool((graph.index[:10] < 10).all()) and float(graph.weight[29].sum()) == 0
    matrix = laplacian(graph)
    assert torch.allclose(matrix, matrix.T) and torch.allclose(matrix.sum(1), torch.zeros(30), atol=1e-6)
