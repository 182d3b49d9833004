"""Overlap of the real stages of curation: the time of a whole run against that of its busiest resource.

By hand; a hundred drawn sources take some minutes:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.curate_overlap --folder DIR

Sources come through four lanes from a server that answers late and slowly; two workers do what needs a core, one the
networks. How long each resource was busy is what the ledger has of its units, so that other work on the machine counts
on both sides; the CPU seconds, divided by the cores, say what the machine itself allows.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import duckdb
import yaml

from common.ledger.store import FLOW, ledger_rows
from miniature.config import SmallWorldConfig
from miniature.world.faults import draw_sources
from tests.common.executors.ray_head import environment, free_port, ray_node, wait_for_port
from tests.curation.web import Web, serve

LANES, CORES = 4, 2
NETWORKS = ("sync", "quality")  # stages of the pool "gpu" in this recipe
PLACES = {"lanes": LANES, "cores": CORES, "networks": 1}


def write_recipe(folder: Path, web: Web, videos: list[Path]) -> Path:
    """The demo's curation of videos that have to be fetched."""
    lines = []
    for video in videos:
        web.bodies[f"/{video.name}"] = ("video/mp4", video.read_bytes())
        lines.append(f"{web.address}/{video.name} {video.stem}")
    (folder / "list.txt").write_text("\n".join(lines))
    lane = {"pause_seconds": [0, 0], "per_hour": 1_000_000, "request_pause_seconds": 0}
    egress = [{"name": f"exit{number}"} | lane for number in range(LANES)]
    recipe = {
        "extends": "demo",
        "small_world": None,
        "sources": {"kind": "urls", "path": str(folder / "list.txt")},
        "curation": {"download": {"allow_private_addresses": True, "egress": egress}},
        "executor": {"gpus_per_worker": 1.0},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def run(folder: Path, recipe: Path) -> float:
    """Run the command on a Ray of its own; returns its seconds."""
    (folder / "token").write_text("0123456789abcdef" * 4)
    variables = environment(folder, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(folder / "token"))
    session, port = Path(f"/tmp/ro{os.getpid()}"), free_port()
    options = [f"--port={port}", f"--num-cpus={CORES}", "--num-gpus=1", "--include-dashboard=false"]
    with ray_node("--head", *options, f"--temp-dir={session}", variables=variables) as head:
        wait_for_port(port, head)
        command = [sys.executable, "-m", "pipelines.cli.start", "curate", "--recipe", str(recipe)]
        command += ["--run", str(folder / "run"), "--ray", f"127.0.0.1:{port}"]
        begun = time.monotonic()
        subprocess.run(command, env=variables, check=True)
        seconds = time.monotonic() - begun
    shutil.rmtree(session, ignore_errors=True)
    return seconds


def report(run: Path, whole: float) -> None:
    """Print how long the resources were busy, and when the first clip was through."""
    tables = duckdb.connect()
    tables.register("rows", ledger_rows(run / "ledger"))
    tables.register("through", ledger_rows(run / "ledger" / FLOW, "results"))
    sql = "SELECT stage, count(*), sum(seconds), sum(cpu_seconds) FROM rows GROUP BY stage ORDER BY min(recorded)"
    busy: dict[str, float] = defaultdict(float)
    cpu = 0.0
    for stage, count, seconds, of_cpu in tables.sql(sql).fetchall():
        where = "lanes" if stage == "download" else "networks" if stage in NETWORKS else "cores"
        busy[where] += seconds / PLACES[where]
        cpu += of_cpu
        print(f"{stage:10} {count:4} units {seconds:7.1f} s {of_cpu:7.1f} CPU s  {where}")
    ((begun, wall),) = tables.sql(
        "SELECT min(b), epoch(max(recorded) - min(b)) FROM (SELECT *, recorded - to_seconds(seconds) AS b FROM rows)"
    ).fetchall()
    ((first, done, of),) = tables.sql(
        f"""SELECT epoch(t - TIMESTAMP '{begun}'), count(*) FILTER (recorded <= t), count(*)
            FROM (SELECT min(recorded) AS t FROM through
                  WHERE unit NOT IN (SELECT unit FROM rows WHERE stage = 'download')), rows WHERE stage = 'download'
            GROUP BY t"""
    ).fetchall()
    for where, seconds in busy.items():
        print(f"{where} ({PLACES[where]}) busy for {seconds:.1f} s each")
    print(f"CPU of all units / {os.cpu_count()} cores: {cpu / (os.cpu_count() or 1):.1f} s")
    print(f"first unit to last: {wall:.1f} s, {wall / max(busy.values()):.3f} x the busiest; command: {whole:.1f} s")
    print(f"first clip through after {first:.1f} s, when {done} of {of} downloads were done ({100 * done / of:.1f} %)")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a source")
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--bytes-per-second", type=int, default=40_000)
    options = parser.parse_args()
    shutil.rmtree(options.folder / "run", ignore_errors=True)
    world = SmallWorldConfig(options.sources, offset=0, each_fault=0, seconds=options.seconds, seed=640_000)
    videos = draw_sources(options.folder / "drawn", world)
    with ExitStack() as stack:
        web = stack.enter_context(serve())
        web.latency, web.bytes_per_second = options.latency, options.bytes_per_second
        whole = run(options.folder, write_recipe(options.folder, web, videos))
    report(options.folder / "run", whole)


if __name__ == "__main__":
    main()
