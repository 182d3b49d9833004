"""kill -9 of a command at every change of a file's name: `python -m tests.kill_loop BASE WORK CHANGES ARGUMENT...`.

The command `omniavatar ARGUMENT...` runs in a copy of BASE, `{}` in the arguments standing for it, and is killed before
its n-th rename or removal, for every n (or every CHANGES-th) until it ends undisturbed; then it runs once more. Each
time the copy must be what one undisturbed command makes of BASE. A process forks for each, so that imports are paid
once. Prints how often it was killed, then a line for each difference.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir")
HEAVY = ("pipelines.cli.main", "pipelines.recipe", "pipelines.takedown", "latents.takedown", "eval.import_videos")
HEAVY += ("curation.dataset.versions", "curation.decide.reselect", "curation.decide.split")
TIMES = ("recorded", "seconds", "cpu_seconds", "gpu_seconds", "peak_mb", "host")  # of a ledger row


class StoppedHere(BaseException):
    """Stands for the end of the process."""


def stopped_at(change: int, monkeypatch: Any, do: Callable[[], object]) -> bool:
    """Whether `do` was stopped before its `change`-th rename or removal of a file."""
    seen = [0]

    def counted(function: Any) -> Any:
        def until_stopped(*arguments: Any, **options: Any) -> Any:
            seen[0] += 1
            if seen[0] > change:
                raise StoppedHere
            return function(*arguments, **options)

        return until_stopped

    with monkeypatch.context() as patched:
        for name in ("replace", "rename", "unlink"):
            patched.setattr(os, name, counted(getattr(os, name)))
        try:
            do()
        except StoppedHere:
            return True
    return False


def kill_loop(base: Path, work: Path, *arguments: object, every: int = 1) -> tuple[int, list[str]]:
    """Number of kills, and what differs after the second run from an undisturbed one."""
    command = [sys.executable, "-m", "tests.kill_loop", str(base), str(work), str(every), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    first, *differences = done.stdout.splitlines()
    return int(first), differences


def held(root: Path) -> dict[str, Any]:
    """Everything below a folder, hidden and empty ones too, without the times of ledger rows and takedowns."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root).as_posix()
        if file.is_dir() or file.name.endswith(".status.json"):
            found[name] = None
        elif file.parent.name == "ledger" and file.suffix == ".parquet":
            rows = pq.read_table(file).to_pylist()
            found[name] = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        elif file.parent.name == "takedowns":
            found[name] = {key: value for key, value in json.loads(file.read_text()).items() if key != "taken_down"}
        else:
            found[name] = file.read_bytes()
    return found


def _run(root: Path, arguments: Sequence[str], changes: int = -1) -> int:
    """Fork and run the command on `root`, killed before its `changes`-th change; returns its exit code, or -9."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = [0]

    def killing(change: Any) -> Any:
        def changed(*args: Any, **options: Any) -> Any:
            if seen[0] == changes:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
            return change(*args, **options)

        return changed

    for name in CHANGES:
        setattr(os, name, killing(getattr(os, name)))
    from pipelines.cli.main import main

    sys.argv = ["omniavatar", *(argument.replace("{}", str(root)) for argument in arguments)]
    printed, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    if code:
        print(printed.getvalue(), file=sys.stderr, flush=True)
    os._exit(code)


def _differences(root: Path, expected_root: Path) -> list[str]:
    """Names of what two folders hold that is not the same; a fork looks, since threads do not live through a fork."""
    receiving, sending = os.pipe()
    if child := os.fork():
        os.close(sending)
        with open(receiving, encoding="utf-8") as names:
            found = names.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        return found
    found, expected = held(root), held(expected_root)
    names = sorted({*found, *expected})
    apart = [name for name in names if name not in found or name not in expected or found[name] != expected[name]]
    with open(sending, "w", encoding="utf-8") as out:
        out.write("\n".join(apart))
    os._exit(0)


def main(base: Path, work: Path, every: int, arguments: Sequence[str]) -> None:
    """See the module."""
    for module in HEAVY:
        __import__(module)
    root, lines, kills = work / "run", [], 0
    shutil.copytree(base, root)
    assert _run(root, arguments) == 0
    expected = work / "expected"
    root.rename(expected)
    while True:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base, root)
        code = _run(root, arguments, kills * every)
        if code == 0:
            break
        again = _run(root, arguments)
        if code != -signal.SIGKILL or again != 0:
            lines.append(f"change {kills * every}: exit {code}, then {again}")
        lines += [f"change {kills * every}: {name}" for name in _differences(root, expected)]
        kills += 1
    print("\n".join([str(kills), *lines]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
