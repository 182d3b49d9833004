"""Networks are found inside packages and in the environment's folder of judges, and no package runs for that."""

import importlib
import sys
from pathlib import Path

import pytest

from perception.packaged import CARRIERS, packaged_weights


def carry(folder: Path, role: str) -> Path:
    package, name = CARRIERS[role]
    file = folder / package / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (folder / package / "__init__.py").write_text("raise AssertionError('imported')")
    return file


def test_an_importable_package_comes_before_the_folder_of_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    assert packaged_weights() == {}
    there = {role: carry(tmp_path / "environment" / "judges", role) for role in CARRIERS}
    assert packaged_weights() == there
    first = carry(tmp_path / "packages", "text_detector")
    importlib.invalidate_caches()
    assert packaged_weights() == there | {"text_detector": first}
    assert not {package for package, _ in CARRIERS.values()} & set(sys.modules)
    first.unlink()  # a package of another version, without the file
    assert packaged_weights() == there
