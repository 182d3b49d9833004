import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipelines.gpu_drill.device import Device
from pipelines.gpu_drill.drill import Bench, LeftOutError, Row, optional, run_rows
from pipelines.gpu_drill.published import FULL
from pipelines.gpu_drill.report import Report, Value, table
from pipelines.gpu_drill.sizes import TINY

Run = Callable[[Bench], Iterator[Value]]


class BreaksDown(Device):
    """A CPU that answers no more after the first row, as a GPU does after an illegal access."""

    def healthy(self) -> bool:
        return False


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(Device(), TINY, Report(tmp_path / "gpu.json", {"device": "CPU"}), time.monotonic() + 60)


def fine(bench: Bench) -> Iterator[Value]:
    yield Value("time", 1.5, "s")


def exhausted(bench: Bench) -> Iterator[Value]:
    yield Value("forward", 2.0, "s")
    raise RuntimeError("CUDA out of memory.\nTried to allocate 20 GiB")


def lines_of(bench: Bench, row: str) -> list[tuple[str, str, str]]:
    return [(r["measure"], r["state"], r["note"]) for r in Report.load(bench.report.path).rows if r["row"] == row]


def test_a_row_that_fails_keeps_its_figures_and_its_error_and_the_next_one_runs(bench: Bench) -> None:
    assert run_rows([Row("big", exhausted, 1), Row("small", fine, 1)], bench)
    error = "RuntimeError: CUDA out of memory. Tried to allocate 20 GiB"
    assert lines_of(bench, "big") == [("forward", "measured", ""), ("", "failed", error)]
    assert lines_of(bench, "small") == [("time", "measured", "")]
    assert "in exhausted" in Report.load(bench.report.path).tracebacks["big"]
    assert list(table(bench.report))[-2:] == [
        f"failed: big: {error}",
        f"2 figures, 0 short of their aim, 1 rows failed: {bench.report.path}",
    ]


def test_figures_are_on_disk_before_the_row_goes_on(bench: Bench) -> None:
    seen: list[object] = []

    def run(bench: Bench) -> Iterator[Value]:
        yield Value("first", 1.0, "s")
        on_disk = Report.load(bench.report.path)
        seen.extend((on_disk.find("slow", "first"), on_disk.running and on_disk.running["row"]))

    run_rows([Row("slow", run, 1)], bench)
    assert seen == [1.0, "slow"] and Report.load(bench.report.path).running is None


def _needs(package: str) -> Run:
    def run(bench: Bench) -> Iterator[Value]:
        __import__(package)
        yield Value("time", 1.0, "s")

    return run


def _refuses(bench: Bench) -> Iterator[Value]:
    raise LeftOutError("float8 products need a newer card")
    yield


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (Row("row", fine, 3600), "takes about 3600 s, 60 s are left"),
        (Row("row", fine, 1, flops=lambda sizes: 3e20), "takes about 2000001 s, 60 s are left"),
        (Row("row", fine, 1, memory=lambda sizes: 56e12), "needs about 57680 GB of memory, "),
        (Row("row", _needs("no_such_package"), 1), "needs the package no_such_package, which is not installed"),
        (Row("row", _refuses, 1), "float8 products need a newer card"),
    ],
)
def test_what_does_not_fit_is_left_out_with_the_reason(bench: Bench, row: Row, reason: str) -> None:
    assert run_rows([row, Row("small", fine, 1)], bench)
    ((measure, state, note),) = lines_of(bench, "row")
    assert (measure, state) == ("", "left out") and note.startswith(reason)
    assert bench.report.ended() == {"small"}


def test_a_missing_module_of_ours_is_a_fault(bench: Bench) -> None:
    run_rows([Row("row", _needs("pipelines.no_such_module"), 1)], bench)
    assert lines_of(bench, "row")[0][1] == "failed"
    with pytest.raises(LeftOutError, match="^the thing is not in this version"):
        optional("pipelines.no_such_module", "the thing")


def test_the_ceiling_foretells_time_and_is_what_hfu_refers_to(bench: Bench) -> None:
    row = Row("row", fine, 2, flops=lambda sizes: 3e15)
    assert row.expected(bench) == pytest.approx(2 + 3e15 / (0.5 * 300e12))
    assert list(bench.hfu(1e12, 2.0)) == []
    bench.report.add("ceilings", Value("matrix product bf16", 800.0, "TFLOP/s"))
    assert row.expected(bench) == pytest.approx(2 + 3e15 / (0.5 * 800e12))
    (value,) = bench.hfu(1.6e15, 4.0, ">= 0.5")
    assert value.value == pytest.approx(0.5) and value.met


def test_rows_after_a_broken_device_are_left_to_a_new_process(bench: Bench) -> None:
    bench.device = BreaksDown()
    rows = [Row("first", fine, 1), Row("second", fine, 1)]
    assert not run_rows(rows, bench) and bench.report.ended() == {"first"}
    bench.device = Device()
    assert run_rows(rows, bench) and [row["row"] for row in bench.report.rows] == ["first", "second"]


def test_aims_of_speed_are_for_the_cards_they_were_set_for(bench: Bench) -> None:
    assert bench.aim("<= 2.7") == ""
    bench.device.name = "NVIDIA H100 80GB HBM3"
    assert bench.aim("<= 2.7") == ""
    bench.sizes = FULL
    assert bench.aim("<= 2.7") == "<= 2.7"
    assert Value("time", 2.8, "s", "<= 2.7").met is False and Value("time", float("nan"), "s", "<= 2.7").met is False


def test_published_sizes() -> None:
    # Tokens and operations of the paper's chunk, as counted by torch on diffusers' own module.
    assert FULL.tokens == 29_640 and FULL.pixel_frames == 73
    assert FULL.merged_forward("14B") == pytest.approx(1.443e15, rel=0.005)
    assert FULL.merged_forward("1.3B") == pytest.approx(0.239e15, rel=0.01)
    assert FULL.work("14B", "full").executed == pytest.approx(5.18e15, rel=0.01)
    # 28.6 GB of weights; a training step fits 80 GB, and not 48.
    assert 30e9 < FULL.forward_bytes("14B") < 40e9 and 48e9 < FULL.step_bytes("14B", "full") < 75e9
