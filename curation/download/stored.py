"""Source videos on object storage, fetched from addresses such as s3://bucket/name.mp4 without a rate limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.executors.stage import Stage, no_effect
from common.ledger.store import Outcome
from common.storage import exists, fetch, is_url
from common.untrusted.addresses import AddressError, refuse_private
from curation.download.errors import FailureClass
from curation.sources.remote import Row

RunStage = Callable[[Stage[Any], Sequence[Row]], list[Row]]


def is_stored(row: Row) -> bool:
    """Whether the video of a source row is on object storage, neither local nor on a web site."""
    url = row.get("url") or ""
    return is_url(url) and not url.startswith(("http://", "https://"))


def fetch_stored(rows: Sequence[Row], folder: Path, run_stage: RunStage, allow_private: bool) -> list[Row]:
    """Fetch the videos on object storage; returns their rows, in order, with their `path`.

    `run_stage(stage, rows)` is that of `fetch_sources`. A file that is missing now, or was fetched by another
    machine, is fetched again.
    """
    remote = [row for row in rows if is_stored(row)]
    fetched = run_stage(FetchStage(folder, allow_private), remote) if remote else []
    for row in fetched:
        row["path"] = str(folder / row["file"])
    return fetched


@dataclass(frozen=True)
class FetchStage(Stage[Row]):
    """Over rows of videos on object storage. Outputs: `file` (name in the folder) and `bytes`; rejected as removed."""

    name = "fetch"
    version = "1"
    reads = ("unit", "url")
    folder: Path = no_effect()
    allow_private: bool = no_effect()

    def __call__(self, row: Row) -> Outcome:
        """Fetch one object. Raises StorageError, DiskFullError."""
        try:
            if not self.allow_private:
                refuse_private(row["url"])
        except AddressError as error:
            kind = FailureClass.PRIVATE_ADDRESS
            return Outcome(row["unit"], "failed", kind.value, f"{error} {kind.advice}", error_class=kind.value)
        if not exists(row["url"]):
            return Outcome(row["unit"], "rejected", "removed", f"There is no object at {row['url']}.")
        file = fetch(row["url"], self.folder)
        return Outcome(row["unit"], "kept", outputs={"file": file.name, "bytes": file.stat().st_size})

    def product_exists(self, row: Row, outcome: Outcome) -> bool:
        """Whether the file is still there, whole."""
        file = self.folder / outcome.outputs["file"]
        return file.is_file() and file.stat().st_size == outcome.outputs["bytes"]
