"""Source videos on object storage: fetched by their addresses, such as s3://bucket/name.mp4, into the folder of
downloads; no exit and no manners, since the storage is the user's own."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.storage import exists, fetch, is_url
from curation.sources.remote import Row

Do = Callable[[Stage, Sequence[Row]], list[Row]]


def is_stored(row: Row) -> bool:
    """Whether the video of a source row is on a storage, neither here nor on a web site."""
    url = row.get("url") or ""
    return is_url(url) and not url.startswith(("http://", "https://"))


def fetch_stored(rows: Sequence[Row], folder: Path, do: Do) -> list[Row]:
    """Bring those of the rows that are stored here; returns them, in order, with their `path`.

    `do(stage, rows)` is that of `fetch_sources`. A file that has gone since it was fetched, or was
    fetched by another machine, is fetched again.
    """
    stage = Stage("fetch", "1", {}, {}, partial(_make, folder), reads=("unit", "url", "again"))
    here: set[str] = set()
    lost = [row for row in rows if is_stored(row)]
    while lost := do(stage, lost) if lost else []:
        for row in lost:
            row["path"] = str(folder / row["file"])
        found = [
            row for row in lost if Path(row["path"]).is_file() and Path(row["path"]).stat().st_size == row["bytes"]
        ]
        here |= {row["unit"] for row in found}
        # What the ledger knows holds for the file that was fetched then.
        lost = [row for row in lost if row["unit"] not in here]
        for row in lost:
            row["again"] = row.get("again", 0) + 1
    return [row for row in rows if row["unit"] in here]


def _make(folder: Path) -> Callable[[Row], Outcome]:
    return partial(fetch_object, folder)


def fetch_object(folder: Path, row: Row) -> Outcome:
    """Kept with `file` (name in the folder) and `bytes`, or rejected as removed. Raises StorageError, DiskFullError."""
    if not exists(row["url"]):
        return Outcome(row["unit"], "rejected", "removed", f"There is no object at {row['url']}.")
    file = fetch(row["url"], folder)
    return Outcome(row["unit"], "kept", outputs={"file": file.name, "bytes": file.stat().st_size})
