"""Where a video is to be written: checks made before anything is read or computed. Imports no torch."""

from pathlib import Path

from common.errors import ExistingFileError
from common.media.marks import SOURCE_TYPE
from common.outputs import check_output_file
from common.runs import read_json
from omniavatar.config import Request

LARGEST_SETTINGS = 10_000_000  # bytes of a JSON file of ours
XMP_WITHIN = 10_000  # bytes of a PNG of ours that hold its packet, which stands before the pixels


def check_target(out: Path, request: Request | None = None) -> None:
    """Raise InputError or ExistingFileError where the mp4 `out` and the files beside it (settings, the portrait that
    was drawn) cannot be written, or would replace an input of `request` or a file that another program wrote."""
    request = request or Request()
    inputs = (request.image, request.audio)
    check_output_file(out, (".mp4",), inputs)
    for path in _beside(out, request):
        check_output_file(path, inputs=inputs)
    if foreign := foreign_file(out, request):
        raise ExistingFileError(
            f"{foreign} exists, was not written by a generation, and would be replaced by the file beside {out}; move "
            "it or choose another output."
        )


def foreign_file(out: Path, request: Request) -> str:
    """The file beside the mp4 `out` that would be replaced and is none of ours; "" where there is none."""
    for path in _beside(out, request):
        if path.exists() and not (_is_settings(path) if path.suffix == ".json" else _is_portrait(path)):
            return str(path)
    return ""


def _beside(out: Path, request: Request) -> list[Path]:
    """The settings, and the portrait that is drawn where the request has none."""
    portrait = [] if request.image or not request.prompt.strip() else [out.with_suffix(".png")]
    return [out.with_suffix(".json"), *portrait]


def _is_settings(path: Path) -> bool:
    try:
        facts = read_json(path) if path.stat().st_size <= LARGEST_SETTINGS else None
    except (ValueError, OSError, RecursionError):
        return False
    return isinstance(facts, dict) and {"settings", "versions", "fps"} <= set(facts)


def _is_portrait(path: Path) -> bool:
    facts = path.with_suffix(".json")  # written by earlier versions, which did not mark the portrait
    if facts.exists() and _is_settings(facts) and Path(read_json(facts).get("image", "")).name == path.name:
        return True
    with path.open("rb") as file:
        head = file.read(XMP_WITHIN)
    return head.startswith(b"\x89PNG") and SOURCE_TYPE.encode() in head
