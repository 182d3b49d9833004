"""The two networks of the pack and their ONNX files, as InsightFace and onnxruntime see them."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch

from miniature.train.face_nets import STRIDES, FaceDetectorNet, FaceRecogniserNet, export_pack


@pytest.fixture(scope="module")
def nets() -> tuple[FaceDetectorNet, FaceRecogniserNet]:
    torch.manual_seed(0)
    detector, recogniser = FaceDetectorNet(), FaceRecogniserNet()
    with torch.no_grad():  # running statistics that are not the neutral ones
        detector(torch.randn(2, 3, 64, 64))
        recogniser(torch.randn(4, 3, 112, 112))
    return detector.eval().requires_grad_(False), recogniser.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pack(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # exporting is quiet
        export_pack(*nets, folder)
    return folder


def test_detector_has_nine_outputs_in_the_published_order(nets) -> None:
    outputs = nets[0](torch.randn(2, 3, 64, 96))
    rows = [2 * 64 * 96 // stride**2 for stride in STRIDES]
    assert [tuple(o.shape) for o in outputs[:3]] == [(2, n) for n in rows]
    assert [tuple(o.shape) for o in outputs[3:6]] == [(2, n, 4) for n in rows]
    assert [tuple(o.shape) for o in outputs[6:]] == [(2, n, 10) for n in rows]
    assert all((o > 0).all() for o in outputs[3:6])


def test_rows_run_over_y_then_x_then_anchor(nets) -> None:
    detector = nets[0]
    picture = torch.randn(1, 3, 64, 96)
    features = detector.stem(picture)
    maps = [features := stage(features) for stage in detector.stages]
    coarse = detector.score(detector.tower(maps[2]))  # (1, 2, 2, 3): nothing coarser is added to the last one
    assert torch.allclose(detector(picture)[2].view(2, 3, 2), coarse[0].permute(1, 2, 0), atol=1e-6)


def test_files_compute_what_the_networks_compute(nets, pack) -> None:
    picture = torch.randn(1, 3, 96, 128)  # another size than the exported example
    session = onnxruntime.InferenceSession(str(pack / "det_miniature.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: picture.numpy()})
    expected = nets[0](picture)
    for stride_index in range(3):
        score = expected[stride_index].sigmoid().reshape(-1, 1).numpy()
        assert np.allclose(found[stride_index], score, atol=1e-5)
    for output, tensor in zip(found[3:], expected[3:], strict=True):
        assert np.allclose(output, tensor[0].numpy(), atol=1e-4)
    faces = torch.randn(3, 3, 112, 112)
    session = onnxruntime.InferenceSession(str(pack / "rec_miniature.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input.1": faces.numpy()})[0]
    assert np.allclose(found, nets[1](faces).numpy(), atol=1e-4)


def test_insightface_takes_the_folder_for_a_pack(pack) -> None:
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    assert set(analysis.models) == {"detection", "recognition"}
    # No early subtraction and multiplication: InsightFace normalises for this file.
    assert analysis.models["recognition"].input_mean == 127.5
