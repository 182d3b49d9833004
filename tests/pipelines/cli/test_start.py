import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.runs import OWN_FOLDERS
from pipelines.cli.start import OWN_PACKAGES, foreign_package

ROOT = Path(__file__).parents[3]


def test_our_own_packages_are_all_checked_and_found():
    assert OWN_PACKAGES == OWN_FOLDERS and foreign_package() == ""


@pytest.mark.parametrize("file", ["common/__init__.py", "training.py"])
def test_a_foreign_package_of_the_same_name_is_named_with_its_path(file, tmp_path):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "packages")))}
    command = [sys.executable, "-m", "pipelines.cli.start", "status"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=120)
    name = Path(file).parts[0].removesuffix(".py")
    assert done.returncode == 1 and done.stderr.startswith(f"error: The package '{name}' is found at {tmp_path}")
    assert f"pip uninstall {name}" in done.stderr and "Traceback" not in done.stderr
