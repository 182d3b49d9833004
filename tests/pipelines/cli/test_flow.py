import os

import pytest

from common.runs import RunFolder, save_provenance
from pipelines.cli.flow import _is_newest

MADE_OF = ("clips.parquet", "ledger/cut-1.parquet", "logs/train.jsonl", "logs/steps/eval.json", "report/scores.json")


@pytest.fixture
def reported(tmp_path):
    """A run with the files that a report is made of and the report, written one second after the other."""
    run = RunFolder(tmp_path)
    page = run.report / "index.html"
    for second, file in enumerate([*(tmp_path / name for name in MADE_OF), page]):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        os.utime(file, (second, second))
    return run, page


def test_a_report_newer_than_all_it_is_made_of_stays(reported):
    run, page = reported
    (run.root / ".lock").touch()
    assert _is_newest(page, run)


@pytest.mark.parametrize("name", [*MADE_OF, "videos/manifest.parquet"])
def test_a_file_written_after_the_report_makes_it_old(reported, name):
    run, page = reported
    (run.root / name).parent.mkdir(exist_ok=True)
    (run.root / name).write_text("new")
    assert not _is_newest(page, run)


def test_another_recipe_makes_it_old_and_the_same_does_not(reported):
    run, page = reported
    save_provenance(run, "name: a\n", {})
    page.touch()
    save_provenance(run, "name: a\n", {})
    assert _is_newest(page, run)
    save_provenance(run, "name: b\n", {})
    assert not _is_newest(page, run)


def test_no_report_is_not_new(reported):
    run, page = reported
    page.unlink()
    assert not _is_newest(page, run)
