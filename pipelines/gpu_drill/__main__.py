"""Command line of the drill: `python -m pipelines.gpu_drill [--tiny] [--out DIR]`, as `make gpu` calls it.

The process started first supervises; the one that it starts measures.
"""

import argparse
import faulthandler
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError, UserError
from common.process.offline import stay_offline
from common.progress import setup_logging
from common.runs import OWN_FOLDERS
from pipelines.gpu_drill.report import Report, table
from pipelines.gpu_drill.supervise import BROKEN, supervise

FILE = "gpu.json"


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print the table; 0 when every row was measured or left out, 1 when one failed."""
    options = parsed(words)
    stay_offline()
    setup_logging()
    try:
        return _measured(options) if options.measure else _supervised(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except ModuleNotFoundError as error:  # of what every row needs; a row that needs more is left out
        if (error.name or "").partition(".")[0] in OWN_FOLDERS:
            raise
        sys.stderr.write(f"error: There is no package {error.name}; docs/gpu.md says what to install or to carry.\n")
        return 1


def parsed(words: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.gpu_drill", description="Measure one CUDA device.")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: the same code within seconds, on a CPU too")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help=f"folder of {FILE} (default: runs/gpu)")
    parser.add_argument("--minutes", type=float, default=9.0, help="limit of everything together (default: 9)")
    parser.add_argument("--rows", default="", help="only these rows, separated by commas")
    parser.add_argument("--resume", action="store_true", help=f"keep the rows in {FILE}, run those that were left out")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--measure", action="store_true", help="measure in this process, without supervision or table")
    return parser.parse_args(words)


def _supervised(options: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "pipelines.gpu_drill", "--measure"]
    command += ["--out", str(options.out), "--rows", options.rows, "--device", options.device]
    command += ["--tiny"] if options.tiny else []
    code = supervise(command, options.out / FILE, 60 * options.minutes, options.resume)
    if not (options.out / FILE).exists():
        return code
    report = Report.load(options.out / FILE)
    print("\n".join(table(report)))
    return code or int(bool(report.tracebacks))


def _measured(options: argparse.Namespace) -> int:
    logging.getLogger("omniavatar").setLevel(logging.WARNING)  # it logs each choice of a kernel, here one per step
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the supervisor asks a row that hangs where it is
    code = measure(options)
    import torch.distributed

    if torch.distributed.is_initialized():  # by the row of DeepSpeed: NCCL may hang in a process that ends with it
        torch.distributed.destroy_process_group()
    return code


def measure(options: argparse.Namespace) -> int:
    """Run the rows in this process. Raises InputError for an unknown row, and for a report of something else."""
    deadline = time.monotonic() + 60 * options.minutes
    from pipelines.gpu_drill.device import find_device
    from pipelines.gpu_drill.drill import Bench, run_rows
    from pipelines.gpu_drill.published import FULL
    from pipelines.gpu_drill.rows import ROWS
    from pipelines.gpu_drill.sizes import TINY

    named = options.rows.split(",") if options.rows else [row.name for row in ROWS]
    if unknown := sorted(set(named) - {row.name for row in ROWS}):
        raise InputError(f"There is no row {unknown[0]!r}; the rows are {', '.join(row.name for row in ROWS)}.")
    device = find_device(options.device if options.tiny else "cuda")
    machine = device.describe() | {"sizes": "tiny" if options.tiny else "full", "rows": named}
    path = options.out / FILE
    report = _resumed(path, machine) if options.resume and path.exists() else Report(path, machine)
    report.save()
    bench = Bench(device, TINY if options.tiny else FULL, report, deadline)
    whole = run_rows([row for row in ROWS if row.name in named], bench)
    return 0 if whole else BROKEN


def _resumed(path: Path, machine: dict[str, object]) -> Report:
    report = Report.load(path)
    for key in ("device", "torch", "sizes"):
        if report.machine.get(key) != machine[key]:
            raise InputError(
                f"{path} was measured with {key} {report.machine.get(key)!r}, this is {machine[key]!r}; give another "
                "--out, or measure anew without --resume."
            )
    report.forget_left_out()
    return Report(path, machine, report.rows, report.tracebacks)


if __name__ == "__main__":
    sys.exit(main())
