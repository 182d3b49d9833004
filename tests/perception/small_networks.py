"""ONNX networks of a few nodes, written by the tests that run them, whose answers are known."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

Shapes = Mapping[str, Sequence[int | str]]


def write_network(
    path: Path, nodes: Sequence[NodeProto], constants: Mapping[str, np.ndarray], inputs: Shapes, outputs: Shapes
) -> Path:
    """Write `nodes` over named `constants` and return the path."""
    entries, exits = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, shape in shapes.items()]
        for shapes in (inputs, outputs)
    )
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), path.stem, entries, exits, weights)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def write_constant(path: Path, shape: Sequence[int | str], answers: Mapping[str, np.ndarray]) -> Path:
    """A network of one input, `picture`, that always gives `answers`."""
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["mean"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        *(helper.make_node("Add", [f"{name} as given", "zero"], [name]) for name in answers),
    ]
    constants = {f"{name} as given": np.asarray(value, np.float32) for name, value in answers.items()}
    outputs = {name: np.shape(value) for name, value in answers.items()}
    return write_network(path, nodes, constants | {"nothing": np.float32(0)}, {"picture": shape}, outputs)
