"""Connection of this process to Ray: a private one of its own, or a cluster that is joined with its token."""

import atexit
import json
import logging
import math
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.executors.config import ExecutorConfig
from common.executors.stage import StageError
from common.process.offline import offline_environment, refuse_telemetry
from common.process.signals import Stopped, keep_handlers

OBJECT_STORE_BYTES = 100 * 2**20  # rows are small
QUIET_RAY = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "worker died or was killed",  # recorded as a ledger row instead
}
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # of what `ray job submit` started
SHIPS_CODE = {"py_modules", "working_dir", "pip", "uv", "conda", "container", "image_uri"}  # of a runtime environment

_own_token = secrets.token_hex(32)  # of the private Rays of this process


def connect_ray(config: ExecutorConfig) -> None:
    """Join the cluster of `config`, or start a private one; no-op when connected. Raises StageError.

    Left to itself, each entry point of Ray decides for itself whether to send a token. Here a cluster is joined with
    the token of RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or else of ~/.ray/auth_token where there is one, unless
    RAY_AUTH_MODE says otherwise. A private Ray has a token of its own and touches none of these.
    """
    refuse_telemetry()
    for name, value in QUIET_RAY.items():
        os.environ.setdefault(name, value)
    import ray  # takes a second, so only runs on Ray import it

    if ray.is_initialized():
        return
    if config.ray_address == "local":
        _start_private(config)
    else:
        _join(config.ray_address)


def _start_private(config: ExecutorConfig) -> None:
    workers = config.workers or len(os.sched_getaffinity(0))
    cores = max(1, math.ceil(workers * config.cpus_per_worker))
    atexit.register(_end_private_ray)
    # Its workers inherit the environment; a cluster needs a runtime_env, which is slower.
    variables = {"PYTHONPATH": _search_path(), MODE: "token", TOKEN: _own_token, TOKEN_PATH: None}
    with _environment(variables):
        _init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES)


def _join(address: str) -> None:
    import ray

    mode, token = cluster_authentication()
    if mode == "token" and not token:
        raise StageError(
            f"Ray at '{address}' is to be joined with {MODE}=token, and there is no token: {TOKEN} is not set and "
            f"there is no file at {_token_file()}. Set {TOKEN_PATH} to the file that the head was started with."
        )
    try:
        with _environment({MODE: mode}):
            _init(address=address, runtime_env={"env_vars": _worker_variables()})
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "no answer"
        raise StageError(
            f"Ray at '{address}' cannot be joined ({reason}). Check that it runs there, and that the head, the nodes, "
            f"`ray job submit` and this command have the same authentication: {MODE}=token and a {TOKEN_PATH} with the "
            f"same token (here {MODE} is {mode or 'not set'}, {f'the token is of {token}' if token else 'no token'}). "
            "executor.ray_address=local starts a private Ray."
        ) from error


def cluster_authentication() -> tuple[str | None, str]:
    """The RAY_AUTH_MODE that a cluster is joined with, and where its token is from; "" when there is none."""
    token = TOKEN if os.environ.get(TOKEN) else str(_token_file()) if _token_file().is_file() else ""
    mode = os.environ.get(MODE)
    return (mode.lower() if mode else "token" if token else None), token


def _token_file() -> Path:
    return Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")


def _worker_variables() -> dict[str, str]:
    """Environment of the workers on a cluster. A job's own runtime environment goes before: it brings the packages, and
    Ray refuses a variable that is set twice."""
    of_job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env", {})
    variables = offline_environment()
    if not SHIPS_CODE & of_job.keys():
        variables["PYTHONPATH"] = _search_path()
    return {name: value for name, value in variables.items() if name not in of_job.get("env_vars", {})}


def _search_path() -> str:
    return os.pathsep.join(filter(None, sys.path))  # workers use the same module search path


def _init(**options: Any) -> None:
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")  # Ray reads the mode and the token once in a process, maybe before they were set here
    AuthenticationTokenLoader.instance().reset_cache()
    with keep_handlers():
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
        except SystemExit as end:  # of the handler of SIGTERM that Ray installs first of all
            raise Stopped(signal.SIGTERM) from end


def _end_private_ray() -> None:
    """Shut a private Ray down with the agents of its raylet, which would outlive it by some seconds."""
    import ray

    raylets = _children(os.getpid(), "raylet")
    agents = [agent for raylet in raylets for agent in _children(raylet)]
    ray.shutdown()
    for agent in agents:
        with suppress(ProcessLookupError):
            os.kill(agent, signal.SIGKILL)


def _children(parent: int, name: str = "") -> list[int]:
    """Process ids of the children of a process, those of one name if it is given; none where there is no /proc."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            before, _, after = file.read_text().rpartition(")")
            if int(after.split()[1]) == parent and before.partition("(")[2].startswith(name):
                found.append(int(file.parent.name))
    return found


@contextmanager
def _environment(variables: dict[str, str | None]) -> Iterator[None]:
    """Context with these environment variables; None stands for one that is not set."""
    before = {name: os.environ.pop(name, None) for name in variables}
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
