"""Source videos on object storage, fetched from addresses such as s3://bucket/name.mp4 without a rate limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.executors.stage import Stage, no_effect
from common.ledger.store import Outcome
from common.storage import exists, fetch, is_url
from common.untrusted.addresses import AddressError, refuse_private
from curation.download.errors import FailureClass
from curation.sources.remote import Row


def is_stored(row: Row) -> bool:
    """Whether the video of a source row is on object storage, neither local nor on a web site."""
    url = row.get("url") or ""
    return is_url(url) and not url.startswith(("http://", "https://"))


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

    def products(self, row: Row, outcome: Outcome) -> Mapping[Path, int | None]:
        """The video."""
        return {self.folder / outcome.outputs["file"]: outcome.outputs["bytes"]}
