"""ONNX networks from local files: opened with a clear error, their inputs and outputs checked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from common.process.offline import refuse_telemetry

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

refuse_telemetry()  # whoever imports onnxruntime or insightface imports this module first

Shape = tuple[int | None, ...]  # None stands for any number


class OnnxError(UserError, ValueError):
    """A file is not the ONNX network it should be; the message says what was expected."""


def open_network(
    path: Path, expected: str, inputs: Sequence[Shape], outputs: Sequence[Shape], any_size: bool = False
) -> "InferenceSession":
    """A session of the network in `path`, of the file `expected` names, with these shapes, in their order.

    Sizes the file leaves open fit any. `any_size` leaves open batch, height and width that the file fixes, for a fully
    convolutional network. Raises OnnxError when it is absent, unreadable or of another kind.
    """
    import onnxruntime

    if not path.is_file():
        raise OnnxError(f"{path} does not exist; expected the file {expected}.")
    providers = onnxruntime.get_available_providers()
    try:
        model = _of_any_size(path) if any_size else str(path)
        session = onnxruntime.InferenceSession(model, one_thread(), providers=providers)
    except unreadable() as error:
        raise OnnxError(f"{path} is not a readable ONNX network; copy {expected} again.") from error
    for kind, found, required in (("takes", session.get_inputs(), inputs), ("gives", session.get_outputs(), outputs)):
        shapes = [tuple(item.shape) for item in found]
        if len(shapes) != len(required) or not all(map(_fits, shapes, required)):
            raise OnnxError(f"{path} {kind} {_said(shapes)}; {expected} {kind} {_said(required)}.")
    return session


def _of_any_size(path: Path) -> bytes:
    """A network of images whose inputs and outputs are of any batch, height and width."""
    import onnx

    graph = (model := onnx.load(path)).graph
    # Older exporters list the weights as inputs, too: onnxruntime warns of each, and folds none.
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:], graph.value_info[:]
    graph.input.extend(inputs)
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        for place in {0, 2, 3} & set(range(len(sizes))):
            sizes[place].dim_param = f"{value.name}_{place}"
    return model.SerializeToString()


def one_thread() -> "SessionOptions":
    """Options for one CPU thread: work is spread over processes, and results do not depend on a thread count."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # its warnings are about how a file was exported
    return options


def unreadable() -> tuple[type[Exception], ...]:
    """What onnxruntime, and onnx, raise for a file that is no network they can run."""
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as faults

    kinds = (faults.Fail, faults.InvalidArgument, faults.InvalidGraph, faults.InvalidProtobuf, faults.NoModel)
    return (*kinds, faults.NotImplemented, DecodeError)


def _fits(found: tuple, required: Shape) -> bool:
    pairs = zip(found, required, strict=False)
    return len(found) == len(required) and all(a == b for a, b in pairs if isinstance(a, int) and b is not None)


def _said(shapes: Sequence[tuple]) -> str:
    rows = ["(" + ", ".join(str(side) if isinstance(side, int) else "any" for side in shape) + ")" for shape in shapes]
    return " and ".join(rows)
