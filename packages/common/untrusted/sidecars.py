"""JSON files beside videos, which any program may have written: what is of no use there is told and ignored."""

import logging
import os
from pathlib import Path
from typing import Any

from common.untrusted.lists import parse_json

logger = logging.getLogger(__name__)

LARGEST_BYTES = 16 * 2**20


def read_sidecar(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none. Whatever else is there is named in a warning and gives {}."""
    if not os.path.lexists(path):
        return {}
    try:
        if (size := path.stat().st_size) > LARGEST_BYTES:
            raise ValueError(f"has {size} bytes, more than {LARGEST_BYTES}")
        value = parse_json(path.read_text("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"holds a {type(value).__name__}")
    except (OSError, ValueError) as error:  # a folder or a dangling link too; not UTF-8, not JSON
        reason = error.strerror if isinstance(error, OSError) else str(error)
        logger.warning("%s is not a JSON object and was ignored (%s)", path, reason)
        return {}
    return value


def text_field(fields: dict[str, Any], name: str, path: Path, longest: int = 10_000) -> str | None:
    """A text of a sidecar; None without one, and, with a warning, for a value that is no text of up to `longest`
    characters."""
    value = fields.get(name)
    if value is None or (isinstance(value, str) and len(value) <= longest):
        return (value or "").strip() or None
    found = f"a text of {len(value)} characters" if isinstance(value, str) else f"a {type(value).__name__}"
    logger.warning("%s: %s is %s and was ignored; expected a text of at most %d", path, name, found, longest)
    return None
