"""Whatever is done to a valid file, probe, scan and cut say what is wrong with it: quickly, and in bounded memory."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.curation.damaged_media import WAYS

CASES = 128  # of which `make soak` tries more
# A sound case of two seconds takes 0.1 s; a loop over a claimed million frames takes minutes.
CPU_SECONDS = 5.0
PEAK_MB = 1000
FAULTS = {"unreadable", "not_a_video", "truncated", "no_audio", "unsupported"}


@pytest.mark.parametrize("cases", [CASES, pytest.param(512, marks=pytest.mark.soak)])
def test_every_damaged_file_ends_as_a_verdict(cases: int) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, str(root / "tests/curation/damaged_media.py"), "0", str(cases)]
    path = f"{root}:{root / 'packages'}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env={"PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case["case"] for case in verdicts] == list(range(cases))
    assert [case for case in verdicts if not set(case["said"]) <= FAULTS | {"kept"}] == []
    assert [case for case in verdicts if case["seconds"] > CPU_SECONDS or case["peak_mb"] > PEAK_MB] == []
    # The damage is neither so small that all is kept nor so large that nothing gets past the first stage.
    reached = Counter((case["way"], case["said"][0] == "kept") for case in verdicts)
    assert all(reached[way.__name__, False] for way in WAYS)
    assert sum(count for (_, kept), count in reached.items() if kept) > cases / 4
