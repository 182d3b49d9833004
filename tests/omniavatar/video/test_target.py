from pathlib import Path

import numpy as np
import pytest

from common.errors import ExistingFileError, InputError
from omniavatar.config import GenerateConfig, Request
from omniavatar.video.target import check_target
from omniavatar.video.video_file import write_portrait, write_settings


def test_settings_of_others_are_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "talk.mp4"
    for content in ("mine", '{"text": "hi", "segments": []}', "[]", '{"settings": {}, "fps": 25}', "[" * 100_000):
        out.with_suffix(".json").write_text(content)
        with pytest.raises(ExistingFileError, match=r"talk\.json exists, was not written by a generation"):
            check_target(out)
    write_settings(out, GenerateConfig(), {})
    check_target(out)


def test_a_portrait_of_others_is_not_replaced_where_one_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    with pytest.raises(ExistingFileError, match=r"a\.png exists"):
        check_target(out, Request(prompt="a man"))
    check_target(out, Request(image=tmp_path / "face.png"))  # draws none
    write_portrait(tmp_path / "a.png", np.zeros((32, 32, 3), np.uint8))
    check_target(out, Request(prompt="a man"))


def test_the_portrait_of_an_earlier_version_is_known_by_its_settings(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("unmarked")
    write_settings(tmp_path / "a.mp4", GenerateConfig(), {"image": str(tmp_path / "a.png")})
    check_target(tmp_path / "a.mp4", Request(prompt="a man"))


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("name", ["a.mp4", "a.json", "link.mp4"])
def test_neither_input_is_replaced(tmp_path: Path, kind: str, name: str) -> None:
    (tmp_path / name).write_text("x")
    if name == "link.mp4":
        (tmp_path / "a.mp4").symlink_to(tmp_path / name)
    with pytest.raises(InputError, match="would replace it"):
        check_target(tmp_path / "a.mp4", Request(**{kind: tmp_path / name}))
