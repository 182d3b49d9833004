"""One thread for every library, and the table of all rows at the end."""

from collections.abc import Callable, Iterator

import cv2
import pytest
import torch

from common.ledger.jsonlines import JsonLines
from tests.benchmarks.measure import ROUNDS, Row, table


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Iterator[Callable[[Row], None]]:
    """Takes in one row: appended to runs/bench.jsonl at once, printed with the others when all are measured."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[Row] = []
    log = JsonLines(pytestconfig.rootpath / "runs" / "bench.jsonl")

    def take(row: Row) -> None:
        rows.append(row)
        log.append(row.record())

    yield take
    log.close()
    print(f"\nCPU seconds, median of {ROUNDS} interleaved rounds, one thread; the aim is a ratio of ours to peer\n")
    print(table(rows), end="\n\n")
