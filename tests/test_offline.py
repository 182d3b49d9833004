"""Nothing calls home: what commands try to reach, and what they leave in the home folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.process import offline
from miniature.weights import model_paths

ROOT = Path(__file__).parents[1]
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
os.execvp(sys.argv[1], sys.argv[1:])
"""
ATTEMPT = re.compile(
    r"sa_family=AF_INET6?,.*?(?:inet_addr\(|inet_pton\(AF_INET6, )\"(?!127\.|::1\"|::ffff:127\.|0\.0\.0\.0)"
)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a user who has set nothing."""
    plain = {
        name: value for name, value in os.environ.items() if name not in {**offline.NO_TELEMETRY, **offline.NO_HUB}
    }
    monkeypatch.setattr(os, "environ", plain)
    monkeypatch.setattr(offline, "_own", set())
    return plain


def test_a_command_is_offline_but_for_what_the_user_has_set(variables: dict[str, str]) -> None:
    variables |= {"RAY_USAGE_STATS_ENABLED": "1"}
    offline.stay_offline()
    assert offline.offline_environment() == offline.NO_TELEMETRY | offline.NO_HUB | {"RAY_USAGE_STATS_ENABLED": "1"}
    offline.go_online()
    assert "HF_HUB_OFFLINE" not in variables and variables["DO_NOT_TRACK"] == "1"


@pytest.mark.parametrize("chosen", ["0", "1"])
def test_the_hub_stays_as_the_user_has_set_it(variables: dict[str, str], chosen: str) -> None:
    variables["HF_HUB_OFFLINE"] = chosen
    offline.stay_offline()
    assert variables["HF_HUB_OFFLINE"] == chosen
    offline.go_online()
    assert variables["HF_HUB_OFFLINE"] == chosen


def test_a_network_opened_by_a_program_of_the_user_leaves_nothing_at_home(tmp_path: Path) -> None:
    """onnxruntime writes a device id into the home folder unless it is told not to before it is imported."""
    code = (
        "from perception.onnx_nets import open_network\nfrom pathlib import Path\n"
        f"open_network(Path({str(model_paths()['face_identity'])!r}), 'w600k_r50.onnx', [(None,) * 4], [(None,) * 2])"
    )
    plain = {name: value for name, value in os.environ.items() if name not in offline.NO_TELEMETRY}
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=plain | home, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []


def attempts(home: Path, *command: str) -> list[str]:
    """Run a command without a network; every address beyond this machine that it, or a child of it, tried to reach."""
    trace = home / "trace"
    plain = {
        name: value for name, value in os.environ.items() if name not in {**offline.NO_TELEMETRY, **offline.NO_HUB}
    }
    plain |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    plain |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "packages")))}
    traced = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg,execve",
        "-e",
        "signal=none",
        "-o",
        str(trace),
    ]
    line = ["unshare", "-rn", sys.executable, "-c", LOOPBACK_UP, *traced, sys.executable, *command]
    done = subprocess.run(line, env=plain, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode in (0, 1), done.stderr
    return tried_in(trace.read_text(errors="replace"))


def tried_in(trace: str) -> list[str]:
    """The attempts in a trace, but for name look-ups of ranks: torch asks for the name of their loopback address."""
    lines = trace.splitlines()
    ranks = {line.split()[0] for line in lines if "execve(" in line and '"training.train"' in line}
    found = [line for line in lines if ATTEMPT.search(line)]
    return [line for line in found if not (line.split()[0] in ranks and "htons(53)" in line)]


@pytest.mark.soak
def test_no_command_tries_to_reach_anything_but_this_machine(tmp_path: Path) -> None:
    assert shutil.which("strace") and shutil.which("unshare"), "strace and unshare show what is tried; install them"
    probe = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: pass"
    assert attempts(tmp_path, "-c", probe)  # what is looked for would be seen
    run = str(tmp_path / "run")
    tiny = ("--recipe", str(ROOT / "tests" / "tiny.yaml"), "--run", run)
    start = ("-m", "pipelines.cli.start")
    tried = {}
    for name, command in {
        # Not on Ray: its head process asks for the cloud's metadata address once, whatever is set, and sends nothing.
        "run": ("run", *tiny),
        "query": ("query", "select * from 'https://example.com/a.parquet'", "--run", run),
        "query --write": ("query", "--write", "select st_point(1, 2)", "--run", run),
        "models check": ("models", "check"),
    }.items():
        tried[name] = attempts(tmp_path, *start, *command)
    assert tried == dict.fromkeys(tried, [])
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if "onnxruntime" in path.name.lower()]
    assert left == [] and not (tmp_path / ".duckdb").exists()
