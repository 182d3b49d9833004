import tomllib
from pathlib import Path

import pytest

from common.errors import EXTRA_OF, ExistingFileError, InputError, MissingFileError, UserError, needs_extra
from common.errors import write_traceback as write

ROOT = Path(__file__).parents[2]
CARRIERS = {"silero_vad"}  # of files: nothing imports them
IMPORT_NAMES = {"scikit-image": "skimage", "opencv-python": "cv2", "yt-dlp": "yt_dlp"}


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(InputError, ValueError), (MissingFileError, FileNotFoundError), (ExistingFileError, FileExistsError)],
)
def test_errors_of_the_user_are_also_the_built_in_ones(kind, builtin):
    error = kind("the value is 3; expected 4")
    assert isinstance(error, UserError) and isinstance(error, builtin) and str(error) == "the value is 3; expected 4"


def test_extras_are_those_of_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {extra: {_module(line) for line in lines} for extra, lines in project["optional-dependencies"].items()}
    base = {_module(line) for line in project["dependencies"]}
    for module, extras in EXTRA_OF.items():
        assert module not in base and all(module in names[extra] for extra in extras), module
    in_extras = set().union(*(libraries for extra, libraries in names.items() if extra != "dev"))
    assert in_extras - base == set(EXTRA_OF) | CARRIERS


def _module(requirement: str) -> str:
    name = requirement.partition("[")[0].partition("<")[0].partition(">")[0]
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def test_a_library_without_an_extra_is_not_explained():
    assert needs_extra(ModuleNotFoundError("No module named 'x'", name="x")) is None
    assert "[curate]'" in str(needs_extra(ModuleNotFoundError("No module named 'decord'", name="decord")))


def test_a_traceback_file_begins_with_the_sentence(tmp_path):
    try:
        raise KeyError("a\n b")
    except KeyError as error:
        assert write(error, tmp_path / "logs" / "e.txt") == "'a\\n b'"
    text = (tmp_path / "logs" / "e.txt").read_text()
    assert text.startswith("'a\\n b'\n\nTraceback") and "test_errors.py" in text
