"""Authentication of Ray: that of a private one, and the cases of joining a cluster, with real heads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.executors.config import ExecutorConfig
from common.executors.ray_connect import _worker_variables, cluster_authentication, connect_ray
from common.executors.stage import StageError
from tests.common.executors.ray_head import environment, free_port, ray_node, wait_for_port


@pytest.fixture(autouse=True)
def no_authentication(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_token_that_is_there_is_sent_whatever_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cluster_authentication() == (None, "")
    in_home = tmp_path / ".ray" / "auth_token"
    in_home.parent.mkdir()
    in_home.write_text("t" * 32)
    assert cluster_authentication() == ("token", str(in_home))
    named = tmp_path / "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert cluster_authentication() == (None, "")  # the file that is named, and no other
    named.write_text("n" * 32)
    assert cluster_authentication() == ("token", str(named))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster_authentication() == ("disabled", str(named))


def test_a_token_that_is_demanded_and_missing_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(StageError, match=f"no file at {tmp_path}/gone. Set RAY_AUTH_TOKEN_PATH to the file"):
        connect_ray(ExecutorConfig("ray", 1, "10.0.0.1:6379"))


def test_what_a_job_brings_goes_before_what_the_driver_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DO_NOT_TRACK", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert {"PYTHONPATH", "DO_NOT_TRACK", "HF_HUB_OFFLINE"} <= _worker_variables().keys()
    job = {"runtime_env": {"py_modules": ["gcs://stack.whl"], "env_vars": {"DO_NOT_TRACK": "0"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(job))
    assert "HF_HUB_OFFLINE" in _worker_variables()
    assert not {"PYTHONPATH", "DO_NOT_TRACK"} & _worker_variables().keys()
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {"env_vars": {}}}))
    assert "PYTHONPATH" in _worker_variables()


CONNECT = """
import os, sys
from pathlib import Path
from common.executors.config import ExecutorConfig
from common.executors.ray_connect import connect_ray
if __name__ == "__main__":
    for address in sys.argv[1:]:
        connect_ray(ExecutorConfig("ray", 1, address))
        import ray
        ray.get(ray.remote(lambda: 1).remote())
        ray.shutdown()
    here = sorted(name for name in os.environ if name.startswith("RAY_AUTH"))
    print("connected", here, sorted(file.name for file in Path.home().joinpath(".ray").glob("*")))
"""


def connect(script: Path, variables: dict[str, str], *addresses: str) -> str:
    """Last line of a process that connects to each address, one after the other."""
    script.write_text(CONNECT)
    command = [sys.executable, str(script), *addresses]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    return (done.stdout or done.stderr).strip().splitlines()[-1]


@pytest.mark.soak
def test_private_and_joined_rays_do_not_touch_each_other(tmp_path: Path) -> None:
    """Heads with and without a token, each joined with and without one, before and after a private Ray."""
    script, home, token = tmp_path / "connect.py", tmp_path / "home", tmp_path / "token"
    home.mkdir()
    token.write_text("0123456789abcdef" * 4)
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    plain = environment(home)
    assert connect(script, plain, "local") == "connected [] []"
    broken = plain | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}
    assert connect(script, broken, "local").startswith("connected ")  # a private one does not look there
    for head in ({}, with_token):
        port = free_port()
        options = (f"--port={port}", "--num-cpus=1", "--include-dashboard=false", f"--temp-dir=/tmp/rt{os.getpid()}")
        with ray_node("--head", *options, variables=plain | head) as node:
            wait_for_port(port, node)
            address = f"127.0.0.1:{port}"
            here = sorted(name for name in with_token if head or name == "RAY_AUTH_TOKEN_PATH")
            sent = plain | {name: with_token[name] for name in here}
            assert connect(script, sent, address, "local", address) == f"connected {here} []"
            if not head:
                assert connect(script, plain, "local", address) == "connected [] []"
                continue
            refused = connect(script, plain, address)
            assert "RAY_AUTH_MODE=token and a RAY_AUTH_TOKEN_PATH with the same token" in refused
            assert "(here RAY_AUTH_MODE is not set, no token)" in refused
            token.write_text("fedcba9876543210" * 4)
            assert "cannot be joined" in connect(script, sent, address)
