"""The commands that judge: sweeps of a recipe, and videos of any system."""

from pathlib import Path
from typing import Annotated

import typer

from common.progress import setup_logging

app = typer.Typer()
VerboseOption = Annotated[bool, typer.Option("--verbose", help="more log lines, and tracebacks")]


@app.command()
def sweep(
    file: Annotated[str, typer.Argument(help="name of a shipped sweep, or path to a YAML file")],
    out: Annotated[Path, typer.Option("--out", help="folder of the sweep; run again with the same one it goes on")],
    workers: Annotated[int, typer.Option("--workers", help="rows at a time; 0 = all cores")] = 0,
    results: Annotated[Path | None, typer.Option("--results", help="folder of the table; default OUT/results")] = None,
    table_only: Annotated[bool, typer.Option("--table", help="only write the table of what is finished")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="try rows again that failed for good")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Train, sample and judge every row of a sweep with several seeds; ends with a table of paired differences."""
    setup_logging(verbose)
    from common.executors import ExecutorConfig
    from pipelines.sweep import Places, read_sweep
    from pipelines.sweep_pages import write_results
    from pipelines.sweep_run import run_sweep

    config = read_sweep(file)
    executor = ExecutorConfig(workers=workers, retry_failed=1, retry=retry)
    failed = [] if table_only else run_sweep(config, out, executor)
    command = f"omniavatar sweep {file} --out {out}"
    print(write_results(config, Places(out.resolve()), results or out / "results", command))
    for outcome in failed:
        print(f"{outcome.unit}: {outcome.message}")
    if failed:
        raise typer.Exit(1)
