"""The two networks of an InsightFace pack in small: an SCRFD face detector and an ArcFace recogniser, and their ONNX.

Legend: s stride (8, 16, 32), A anchors per cell (2), rows in the order y, x, anchor; lengths in units of the stride.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

STRIDES = (8, 16, 32)
ANCHORS = 2
EMBEDDING, RECOGNISER_SIDE = 512, 112
DETECTOR_FILE, RECOGNISER_FILE = "det_miniature.onnx", "rec_miniature.onnx"
_OPSET = 17


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class FaceDetectorNet(nn.Module):
    """SCRFD (Guo et al. 2021) with three strides: one shared head, context from coarse to fine by addition.

    Anchor 0 answers for the smaller faces of its stride, anchor 1 for the larger.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, width // 2, 2), _block(width // 2, width // 2, 2))
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_block(width // 2, width, 2), _block(width, width)),
                nn.Sequential(_block(width, width, 2), _block(width, width)),
                nn.Sequential(_block(width, width, 2), _block(width, width)),
            ]
        )
        # No batch norm where three strides share weights: each would need statistics of its own.
        self.tower = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        self.score = nn.Conv2d(width, ANCHORS, 1)
        self.box = nn.Conv2d(width, 4 * ANCHORS, 1)
        self.points = nn.Conv2d(width, 10 * ANCHORS, 1)
        nn.init.constant_(self.score.get_parameter("bias"), -4.0)  # nearly every cell is empty
        nn.init.constant_(self.box.get_parameter("bias"), 2.0)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """RGB (B, 3, H, W), (x - 127.5) / 128, sides divisible by 32 -> per stride: score logits (B, n), distances to
        left, top, right and bottom (B, n, 4), five points (B, n, 10); n = 2 H W / s^2."""
        features, maps = self.stem(image), []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        for fine in (1, 0):
            maps[fine] = maps[fine] + interpolate(maps[fine + 1], scale_factor=2.0, mode="nearest")
        towers = [self.tower(features) for features in maps]
        scores = [_rows(self.score(tower), 1)[..., 0] for tower in towers]
        boxes = [softplus(_rows(self.box(tower), 4)) for tower in towers]
        return *scores, *boxes, *(_rows(self.points(tower), 10) for tower in towers)


def _rows(maps: Tensor, numbers: int) -> Tensor:
    """(B, A * k, h, w) -> (B, h * w * A, k)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, numbers)


class _PublishedDetector(nn.Module):
    """What an SCRFD file computes: no batch axis, scores after the sigmoid, scores, boxes and points by stride."""

    def __init__(self, net: FaceDetectorNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs = self.net(image)
        scores = [logits.sigmoid().reshape(-1, 1) for logits in outputs[:3]]
        return *scores, *(rows.reshape(-1, rows.shape[-1]) for rows in outputs[3:])


class FaceRecogniserNet(nn.Module):
    """Aligned RGB face (N, 3, 112, 112), (x - 127.5) / 127.5 -> embedding (N, 512); its direction is the identity."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 12, 24, 32, 48)
        self.body = nn.Sequential(*(_block(a, b, 2) for a, b in zip(widths, widths[1:], strict=False)), nn.AvgPool2d(2))
        self.neck = nn.Linear(48 * 3 * 3, 64)
        self.head = nn.Linear(64, EMBEDDING)

    def forward(self, faces: Tensor) -> Tensor:
        return self.head(torch.relu(self.neck(self.body(faces).flatten(1))))


def export_pack(detector: FaceDetectorNet, recogniser: FaceRecogniserNet, folder: Path) -> None:
    """Write both networks as ONNX files, which `insightface.app.FaceAnalysis(name=folder)` loads.

    InsightFace tells the parts of a pack by their outputs (nine: detector) and input (square, 112: recogniser).
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    sides = {"input.1": {2: "height", 3: "width"}} | {name: {0: f"rows_{name}"} for name in names}
    _export(_PublishedDetector(detector), torch.zeros(1, 3, 64, 96), folder / DETECTOR_FILE, names, sides)
    faces = torch.zeros(1, 3, RECOGNISER_SIDE, RECOGNISER_SIDE)
    _export(recogniser, faces, folder / RECOGNISER_FILE, ["embedding"], {"input.1": {0: "faces"}})


def _export(net: nn.Module, example: Tensor, path: Path, outputs: list[str], axes: dict) -> None:
    with warnings.catch_warnings():
        # The exporter that replaces this one needs a further package and gives the same file.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            net.eval(), (example,), str(path), input_names=["input.1"], output_names=outputs, dynamic_axes=axes,
            opset_version=_OPSET, dynamo=False,
        )  # fmt: skip
