"""Numbers reported by papers, shown apart from ours: they are of other clips, sizes and judges.

Only the order of methods can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from scipy import stats

from common.errors import InputError
from common.untrusted.lists import read_table

PAPER_TABLES = Path(__file__).parents[1] / "paper_tables.csv"
METRIC_IDS = {
    "FID": "fid", "FVD": "fvd", "Sync-C": "sync_c", "Sync-D": "sync_d", "IQA": "iqa", "ASE": "ase", "CSIM": "csim",
    "SSIM": "ssim", "PSNR": "psnr", "HKC": "hkc",
}  # fmt: skip


@dataclass(frozen=True)
class Ordering:
    """How the order of `rows` by our numbers agrees with the paper's: Kendall's tau-b (1 the same, -1 reversed, None
    when one side is all ties), and the pairs that are in the opposite order."""

    metric: str
    rows: tuple[str, ...]
    tau: float | None
    reversed: tuple[tuple[str, str], ...]


def read_reported(table: str, path: Path = PAPER_TABLES) -> dict[str, dict[str, float]]:
    """Method -> metric id -> value of one table, such as "OmniAvatar Table 3". Raises ValueError for an unknown one."""
    lines = [row.values for row in read_table(path)]
    methods: dict[str, dict[str, float]] = {}
    for line in lines:
        if line["table"] == table:
            methods.setdefault(line["method"], {})[METRIC_IDS[line["metric"]]] = float(line["value"])
    if not methods:
        tables = sorted({line["table"] for line in lines})
        raise InputError(f"No table is called {table!r}; the tables are {', '.join(tables)}.")
    return methods


def ordering(metric: str, ours: Mapping[str, float], reported: Mapping[str, float]) -> Ordering | None:
    """Our order against the reported one over the rows that have both values; None below two such rows."""
    rows = tuple(name for name in ours if name in reported)
    if len(rows) < 2:
        return None
    tau = float(stats.kendalltau([ours[name] for name in rows], [reported[name] for name in rows]).statistic)
    reversed_pairs = tuple(
        (a, b) for a, b in combinations(rows, 2) if (ours[a] - ours[b]) * (reported[a] - reported[b]) < 0
    )
    return Ordering(metric, rows, None if tau != tau else tau, reversed_pairs)
