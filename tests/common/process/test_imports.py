import gc
import subprocess
import sys
from pathlib import Path

import pytest

from common.process.imports import large_imports

ROOT = Path(__file__).parents[3]
PROBE = """
import gc, sys
from common.process.imports import large_imports
for name in sys.argv[1:]:
    sys.modules[name] = gc
collected = []
gc.callbacks.append(lambda *_: collected.append(1))
with large_imports():
    objects = [[] for _ in range(50_000)]
    meanwhile = len(collected)
print(meanwhile, gc.isenabled(), gc.get_freeze_count() > 50_000)
"""


@pytest.mark.parametrize(
    ("loaded", "said"), [((), "0 True True"), (("torch",), "0 True False"), (("duckdb",), "0 True False")]
)
def test_nothing_is_collected_and_only_the_first_are_kept_for_good(loaded: tuple[str, ...], said: str) -> None:
    command = [sys.executable, "-c", PROBE, *loaded]
    paths = {"PYTHONPATH": str(ROOT / "packages")}
    assert subprocess.run(command, env=paths, capture_output=True, text=True, check=True).stdout.strip() == said


def test_who_has_switched_the_collector_off_keeps_it_off() -> None:
    gc.disable()
    try:
        with large_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_failed_import_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), large_imports():
        import no_such_module  # noqa: F401
    assert gc.isenabled()
