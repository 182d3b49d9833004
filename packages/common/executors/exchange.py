"""Exchange: the files that stages make, for workers on machines that share no run folder, through object storage.

Every machine has the run at the same path. A worker brings the files that a row stands for before it works on it, and
copies those that it made, as objects named by their content: those of the run's mirror, if it is at the same address.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.runs import sha256_file
from common.storage import OBJECTS, bring, exists, join, publish

FILES = "exchanged"  # field of a row: SHA-256 of each file that it stands for, by the path in the run folder


@dataclass
class Exchange:
    """Files below `root`, the run folder, by way of `url`."""

    root: Path
    url: str
    _hashes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # of files of this size and time

    def bring(self, files: Mapping[str, str]) -> None:
        """Make these files (path in the run folder -> SHA-256) what they are to be. Raises StorageError."""
        for name, digest in files.items():
            path = self.root / name
            if self._hash(path) != digest:
                bring(join(self.url, OBJECTS, digest), path, digest)

    def put(self, paths: Mapping[Path, Any]) -> dict[str, str]:
        """Copy those of these files that are in the run folder; their path there -> SHA-256. Raises StorageError."""
        files = {path.relative_to(self.root).as_posix(): path for path in paths if path.is_relative_to(self.root)}
        hashes = {name: self._hash(path) for name, path in files.items()}
        for name, digest in hashes.items():
            if not exists(address := join(self.url, OBJECTS, digest)):
                publish(files[name], address)
        return hashes

    def _hash(self, path: Path) -> str:
        with suppress(FileNotFoundError):
            status = os.stat(path)
            key = (str(path), status.st_size, status.st_mtime_ns)
            if key not in self._hashes:
                self._hashes[key] = sha256_file(path)
            return self._hashes[key]
        return ""


class ExchangingStage:
    """A stage whose files are exchanged: what the row stands for is brought before, what was made is copied after. An
    object storage that fails is a failed attempt of the unit."""

    def __init__(self, stage: Stage[Any], exchange: Exchange) -> None:
        self.name, self.load = stage.name, stage.load
        self._stage, self._exchange = stage, exchange

    def __call__(self, row: dict[str, Any]) -> Outcome:
        """Run one unit."""
        files = dict(row.get(FILES, {}))
        self._exchange.bring(files)
        outcome = self._stage(row)
        if outcome.state != "kept":
            return outcome
        files |= self._exchange.put(self._stage.products(row, outcome))
        return replace(outcome, outputs=outcome.outputs | {FILES: files}) if files else outcome
