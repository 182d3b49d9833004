"""Networks are checked when they are opened, and what is wrong is said with the file's name."""

from pathlib import Path

import numpy as np
import pytest

from perception.onnx_nets import OnnxError, open_network
from tests.perception.small_networks import write_constant


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """(batch, 3, 8, 8) -> (1, 5)"""
    return write_constant(tmp_path / "net.onnx", ["batch", 3, 8, 8], {"y": np.arange(5.0)[None]})


def test_a_network_of_the_right_shapes_runs(network: Path) -> None:
    session = open_network(network, "net.onnx", [(1, 3, 8, None)], [(None, 5)])
    (y,) = session.run(None, {"picture": np.ones((1, 3, 8, 8), np.float32)})
    assert y.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([(1, 3, 8, 9)], [(1, 5)], r"net.onnx takes \(any, 3, 8, 8\); right.onnx takes \(1, 3, 8, 9\)"),
        ([(1, 3, 8)], [(1, 5)], r"takes \(any, 3, 8, 8\)"),
        ([(1, 3, 8, 8)], [(None, 6)], r"gives \(1, 5\); right.onnx gives \(any, 6\)"),
        ([(1, 3, 8, 8)], [(1, 5), (1, 5)], r"gives \(1, 5\) and \(1, 5\)"),
    ],
)
def test_other_shapes_are_refused(network: Path, inputs: list, outputs: list, message: str) -> None:
    with pytest.raises(OnnxError, match=message):
        open_network(network, "right.onnx", inputs, outputs)


def test_absent_and_broken_files_are_named(tmp_path: Path, network: Path) -> None:
    with pytest.raises(OnnxError, match=r"none.onnx does not exist; expected the file right.onnx"):
        open_network(tmp_path / "none.onnx", "right.onnx", [], [])
    network.write_bytes(network.read_bytes()[:60])
    with pytest.raises(OnnxError, match=r"net.onnx is not a readable ONNX network; copy right.onnx again"):
        open_network(network, "right.onnx", [], [])
    network.write_bytes(b"<html>not found</html>")
    with pytest.raises(OnnxError, match="not a readable"):
        open_network(network, "right.onnx", [], [])
