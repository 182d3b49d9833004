import subprocess
from pathlib import Path

import duckdb
import pytest

from common.errors import InputError
from pipelines.gpu_drill.__main__ import FILE, main, measure, parsed
from pipelines.gpu_drill.report import Report, table
from pipelines.gpu_drill.rows import ROWS

ROOT = Path(__file__).parents[3]
NOT_YET = "is not in this version of the project"
NO_GSPLAT = ("needs the package gsplat, which is not installed", "gsplat composites on CUDA only")


def test_every_row_runs_on_a_cpu_at_tiny_sizes(tmp_path: Path) -> None:
    code = measure(parsed(["--tiny", "--device", "cpu", "--out", str(tmp_path)]))
    report = Report.load(tmp_path / FILE)
    assert code == 0 and report.tracebacks == {} and report.running is None
    left_out = [row for row in report.rows if row["state"] == "left out"]
    assert all(row["note"].endswith((NOT_YET, *NO_GSPLAT)) for row in left_out)
    assert report.ended() | {row["row"] for row in left_out} == {row.name for row in ROWS}
    # On the CPU itself float32 is the reference, bfloat16 and 8 bits are not, and all aims of correctness are met.
    assert report.find("correct_vae", "decode float32 error") == 0
    assert 1e-3 < (report.find("correct_transformer", "bfloat16 error") or 0) < 3e-2
    assert 1e-2 < (report.find("linear_fp8", "error") or 0) < 5e-2
    assert [row for row in report.rows if row["met"] is False] == []
    assert all(row["value"] is not None for row in report.rows if row["state"] == "measured")
    chunk, step = (report.find("chunk_14b_2_passes", measure) for measure in ("chunk", "step"))
    parts = [report.find(row, "time") for row in ("vae_decode", "vae_overlap", "umt5", "umt5")]
    assert chunk == pytest.approx(25 * (step or 0) + sum(part or 0 for part in parts))
    lines = list(table(report))
    assert lines[0].startswith("CPU | ") and "0 rows failed" in lines[-1] and len(lines) == len(ROWS) + 2
    # The query of docs/gpu.md.
    (query,) = [line for line in (ROOT / "docs/gpu.md").read_text().splitlines() if line.startswith("select")]
    found = duckdb.sql(query.replace("runs/gpu/gpu.json", str(tmp_path / FILE))).fetchall()
    assert {(row, measure) for row, measure, *_ in found} == {
        (row["row"], row["measure"]) for row in report.rows if row["state"] == "measured"
    }


def test_the_command_supervises_prints_the_table_last_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'packages'}")
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path), "--rows"]
    assert main([*words, "ceilings"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].endswith(f"0 rows failed: {tmp_path / FILE}") and printed[1].startswith("ceilings")
    first = Report.load(tmp_path / FILE).rows
    assert measure(parsed([*words, "ceilings,linear_int8", "--resume"])) == 0
    assert Report.load(tmp_path / FILE).rows[: len(first)] == first
    assert Report.load(tmp_path / FILE).ended() == {"ceilings", "linear_int8"}


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    words = ["--tiny", "--device", "cpu", "--out", str(tmp_path)]
    with pytest.raises(InputError, match="no row 'forward'; the rows are correct_transformer, "):
        measure(parsed([*words, "--rows", "ceilings,forward"]))
    Report(tmp_path / FILE, {"device": "NVIDIA H200", "torch": "2.11.0", "sizes": "full"}).save()
    with pytest.raises(InputError, match="was measured with device 'NVIDIA H200', this is 'CPU'"):
        measure(parsed([*words, "--resume"]))
    with pytest.raises(InputError, match="no CUDA device; `make gpu TINY=1`"):
        measure(parsed(["--device", "cpu", "--out", str(tmp_path)]))


def test_make_passes_its_variables_on() -> None:
    words = ["make", "-n", "gpu", "TINY=1", "OUT=a b", "RESUME=1", "ROWS=umt5"]
    line = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT).stdout.replace("\\\n", "")
    assert '--out "a b"' in line and "--tiny" in line and "--resume" in line and '--rows "umt5"' in line
