import json
import subprocess
import sys
import time

from pipelines.rehearse.measure import anonymous_bytes, anonymous_parts, run_measured

MEGABYTE = 1_000_000


def test_a_command_is_measured_with_its_output_in_a_file(tmp_path):
    measured = run_measured(("models", "list"), tmp_path / "logs" / "list.log", 60)
    assert measured.code == 0 and not measured.out_of_time
    assert "wan2.1-t2v-14b" in (tmp_path / "logs" / "list.log").read_text()
    assert 10 * MEGABYTE < measured.host < 200 * MEGABYTE and measured.device == 0
    assert 0.1 < measured.cpu_seconds <= 2 * measured.seconds
    assert json.loads((tmp_path / "logs" / "list.peak.json").read_text()) == {"device": 0}


def test_a_command_ends_with_its_time(tmp_path):
    began = time.monotonic()
    measured = run_measured(("models", "list"), tmp_path / "list.log", 0.05)
    assert measured.out_of_time and time.monotonic() - began < 30


def test_a_forked_child_counts_what_it_does_not_share():
    # The child has the parent's 60 MB, and 30 of its own; another program below it counts in full.
    code = (
        "import os, subprocess, sys\n"
        "held = b'x' * 60_000_000\n"
        "if os.fork() == 0:\n"
        "    own = b'y' * 30_000_000\n"
        "    print('ready', flush=True); sys.stdin.read()\n"
        "os.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        parts = anonymous_parts(process.pid)
        assert len(parts) == 2
        assert 90 * MEGABYTE < sum(parts) < 115 * MEGABYTE
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()
    assert anonymous_bytes(process.pid) == 0
