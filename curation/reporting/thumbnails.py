"""One frame of a clip as a small picture inside a page."""

import base64
import io
from pathlib import Path

from PIL import Image

from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import read_frames

HEIGHT = 96


def thumbnail(file: Path) -> str | None:
    """The middle frame as a JPEG `data:` address `HEIGHT` px high; None for a file that is gone or cannot be read."""
    try:
        middle = len(index_video(file).times) // 2
        picture = Image.fromarray(read_frames(file, [middle])[0])
    except (FileNotFoundError, MediaError):
        return None
    width = min(4 * HEIGHT, max(1, round(picture.width * HEIGHT / picture.height)))
    buffer = io.BytesIO()
    picture.resize((width, HEIGHT), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
