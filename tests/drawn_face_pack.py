"""An InsightFace pack made by hand: its "faces" are white squares of 32x32 px in the network's picture.

Nine outputs as SCRFD has them; only stride 32 ever answers, where a whole cell is bright.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STRIDES = (8, 16, 32)
BOX = (0.0, 0.0, 1.0, 1.0)  # left, top, right, bottom of the anchor, in strides
KEYPOINTS = (0.25, 0.25, 0.75, 0.25, 0.5, 0.5, 0.25, 0.75, 0.75, 0.75)


def write_face_pack(folder: Path) -> Path:
    """Write `det_white.onnx` into `folder` and return the folder."""
    nodes, constants, outputs = [], [], []

    def constant(name: str, values: object, kind: type = np.float32) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def node(operation: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operation, inputs, [output], **attributes))
        return output

    constant("column", [-1, 1], np.int64)
    # (x - 127.5) / 128: only a cell whose mean is above 190 of 255 passes 0.5.
    threshold, gain, nothing = constant("threshold", 0.488), constant("gain", 40.0), constant("nothing", 0.0)
    for stride in STRIDES:
        pooled = node("AveragePool", ["input.1"], f"pool_{stride}", kernel_shape=[stride] * 2, strides=[stride] * 2)
        grey = node("ReduceMean", [pooled], f"grey_{stride}", axes=[1], keepdims=1)
        cells = node("Reshape", [grey, "column"], f"cells_{stride}")
        above = node("Sub", [cells, threshold], f"above_{stride}")
        sure = node("Sigmoid", [node("Mul", [above, gain], f"sharp_{stride}")], f"sure_{stride}")
        never = node("Mul", [sure, nothing], f"never_{stride}")
        first = sure if stride == 32 else never
        anchors = node("Concat", [first, never], f"anchors_{stride}", axis=1)  # the second anchor never answers
        scores = node("Reshape", [anchors, "column"], f"score_{stride}")
        zeros = node("Mul", [scores, nothing], f"zeros_{stride}")
        node("Add", [zeros, constant(f"box_of_{stride}", [BOX])], f"bbox_{stride}")
        node("Add", [zeros, constant(f"points_of_{stride}", [KEYPOINTS])], f"kps_{stride}")
    for name, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        outputs += [helper.make_tensor_value_info(f"{name}_{s}", TensorProto.FLOAT, [None, width]) for s in STRIDES]
    picture = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "white squares", [picture], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "det_white.onnx")
    return folder
