"""Commands on a run folder that another command writes into: writers are refused at once, readers answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.clips import write_clips
from tests.common.process.test_locks import holder
from tests.pipelines.command_line import run_here


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = tmp_path_factory.mktemp("held") / "run"
    clip = {"clip_id": "c", "video_id": "v", "duration": 3.0, "decision": "kept", "reasons": [], "split": "train"}
    write_clips(run / "clips.parquet", [clip])
    (run / "sources").mkdir()
    (run / "sources" / "a.mp4").touch()
    (run / "list.csv").write_text("method,clip_id,video\n")
    process = holder(run)
    yield run
    process.communicate("")


@pytest.mark.parametrize(
    "command",
    [
        "demo --run RUN", "run --run RUN", "curate --run RUN", "latents --run RUN --force", "train --run RUN",
        "generate --run RUN", "eval --run RUN", "reselect --run RUN", "split --run RUN --count 1 --out RUN/t.tsv",
        "freeze --run RUN", "takedown --run RUN -- v", "plan --set sources.path=RUN/sources --run RUN",
        "eval import RUN/list.csv --run RUN", "sweep ablations --out RUN --table", "miniature --out RUN",
    ],
)  # fmt: skip
def test_a_second_writer_is_told_who_holds_the_run(command: str, held: Path) -> None:
    before = sorted(path.name for path in held.iterdir())
    done = run_here(*command.replace("RUN", str(held)).split())
    assert done.returncode == 1 and f"{held} is being written by omniavatar curate (process" in done.stderr
    assert sorted(path.name for path in held.iterdir()) == before


@pytest.mark.parametrize("command", ["query states --run RUN", "yield --run RUN", "status --run RUN", "db RUN"])
def test_a_reader_does_not_wait(command: str, held: Path) -> None:
    assert run_here(*command.replace("RUN", str(held)).split()).returncode == 0
