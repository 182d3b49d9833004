"""Download of source videos within rate limits, each video once however many of its spans a data set names.

sources -> [sweep: does it still exist?] -> download -> one file per video, checked. Each egress is a lane of the
executor.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from common.executors.flow import Step
from common.executors.stage import Stage, loaded, no_effect
from common.ledger.store import Outcome, State
from curation.config import DownloadConfig, EgressConfig
from curation.download.egress import Egress
from curation.download.errors import Failure, FailureClass, Rule
from curation.download.folder import VideoFolder, check_talk
from curation.download.site import Info, Site, describe
from curation.download.stored import FetchStage, is_stored
from curation.sources.remote import Row

logger = logging.getLogger(__name__)

STATES: dict[Rule, State] = {
    Rule.NEVER: "rejected",
    Rule.AGAIN: "rejected",
    Rule.LATER: "pending",
    Rule.OTHER_EGRESS: "pending",
    Rule.COOL_DOWN: "pending",
    Rule.REFRESH: "failed",
    Rule.BACK_OFF: "failed",
    Rule.MEND: "failed",
}


def fetch_steps(config: DownloadConfig, folder: Path) -> list[Step]:
    """The steps that fetch remote sources; a row that was fetched has a local file, its `path`. Local ones pass by.

    A fetched file that is missing now, or has another size, is fetched again.
    """
    # Hidden, so that mirrors of the run skip it: these videos are on object storage already.
    stored = folder / ".stored"
    steps = [Step(FetchStage(stored, config.allow_private_addresses), passes=is_not_stored, then=partial(at, stored))]
    if config.sweep:
        steps.append(Step(SweepStage(config, folder), passes=is_not_on_a_site))
    return [*steps, Step(DownloadStage(config, folder), passes=is_not_on_a_site, then=partial(at, folder))]


def is_not_stored(row: Row) -> bool:
    """Whether a source row is none of object storage."""
    return not is_stored(row)


def is_not_on_a_site(row: Row) -> bool:
    """Whether a source row is local or of object storage."""
    return "url" not in row or is_stored(row)


def at(folder: Path, row: Row) -> Row:
    """A source row whose file was fetched into `folder`."""
    return row | {"path": str(folder / row["file"])}


@dataclass(frozen=True)
class SweepStage(Stage[Row]):
    """Over remote rows: checks that a video still exists; its output is `announced`. One lane per egress."""

    name = "sweep"
    version = "1"
    reads = ("unit", "url", "refused")
    config: DownloadConfig
    folder: Path = no_effect()
    lane: str = no_effect(default="")
    fetcher: "Fetcher" = loaded()

    @property
    def params(self) -> dict[str, Any]:
        """Empty: the answer does not depend on any setting."""
        return {}

    @property
    def lanes(self) -> tuple[str, ...]:
        """One per egress: each has rate limits of its own."""
        return tuple(egress.name for egress in self.config.egress)

    def in_lane(self, lane: str) -> "Stage[Row]":
        """The stage through the egress of that name."""
        return replace(self, lane=lane)

    def load(self) -> None:
        """Open the egress."""
        self.hold(fetcher=Fetcher(self.config, self.folder, self.lane))

    def __call__(self, row: Row) -> Outcome:
        """Look up one video."""
        return self.fetcher.sweep(row)


@dataclass(frozen=True)
class DownloadStage(SweepStage):
    """Over remote rows: writes `<folder>/<unit>.<suffix>`. One lane per egress.

    Outputs: `file` (name in the folder), `bytes`, `sha256`, `asked` (UTC), `exit` (name of the egress), `fetched` (what
    the site reported: address, format_id, codecs, height, duration in seconds, bytes, yt_dlp version; null for a file
    that existed before), `forbidden` (number of 403 responses for the media on the way) and, where crops had to be
    scaled, `segments`.
    """

    name = "download"

    @property
    def params(self) -> dict[str, Any]:
        """The settings that determine which bytes are fetched."""
        return self.config.format_settings

    def __call__(self, row: Row) -> Outcome:
        """Fetch one video."""
        return self.fetcher.download(row)

    def products(self, row: Row, outcome: Outcome) -> Mapping[Path, int | None]:
        """The video."""
        return {self.folder / outcome.outputs["file"]: outcome.outputs["bytes"]}


class Fetcher:
    """Looks up and downloads videos through one egress. Tests pass their own `egress`."""

    def __init__(self, config: DownloadConfig, folder: Path, lane: str, egress: Egress | None = None) -> None:
        self.config, self.videos = config, VideoFolder(folder, config.format_settings)
        settings = next(each for each in config.egress if each.name == lane)
        self.egress = egress or self._egress(settings)
        self.egress.reset_strikes()
        self.site = Site(
            settings,
            self.videos.path / ".yt-dlp",
            config.max_height,
            config.prefer_codec,
            config.network_tries,
            config.backoff_seconds,
            config.allow_private_addresses,
        )

    def _egress(self, config: EgressConfig) -> Egress:
        # ".exits" is the folder name of earlier versions: their limits and cooldowns stay in force.
        return Egress(config, self.config.cooldown, self.videos.path / ".exits" / f"{config.name}.json")

    def sweep(self, row: Row) -> Outcome:
        """Kept with `announced` (see `curation.download.site.describe`), or the failure."""
        return self._answer(row, lambda: self._announced(row))

    def download(self, row: Row) -> Outcome:
        """Kept when the file is in the folder, or the failure."""
        return self._answer(row, lambda: self.videos.existing_outputs(row) or self._fetched(row))

    def _answer(self, row: Row, do: Callable[[], dict[str, Any]]) -> Outcome:
        """Run `do` within the rate limit of the egress and by the rules of the failures."""
        if row.get("refused"):
            return Outcome(row["unit"], "rejected", row["refused"]["reason"], row["refused"]["message"])
        if self.egress.cooldown_left():
            return self._postponed(
                row, "rate_limited", f"egress {self.egress.config.name} is cooling down after a refusal"
            )
        if self.egress.cooling_down and self.config.canary and (failure := self._canary_failure()):
            self.egress.record_refusal(f"the canary: {failure}")
            return self._postponed(row, "rate_limited", f"the canary look-up failed: {failure}")
        spent: Counter[FailureClass] = Counter()
        # "exit" is the key of the egress in the ledger, which older ledgers and queries share.
        request = {"asked": datetime.now(UTC).isoformat(timespec="milliseconds"), "exit": self.egress.config.name}
        try:
            outputs = self._persistent(do, spent)
        except Failure as failure:
            outcome = self._refusal(row, failure)
        else:
            outcome = Outcome(row["unit"], "kept", outputs=outputs)
        return replace(outcome, outputs=request | {"forbidden": spent[FailureClass.FORBIDDEN]} | outcome.outputs)

    def _persistent(self, do: Callable[[], dict[str, Any]], spent: Counter[FailureClass]) -> dict[str, Any]:
        """Run `do`, retried as often as the rule of each failure allows. Raises the last Failure."""
        again = {Rule.REFRESH: 1, Rule.AGAIN: 1, Rule.BACK_OFF: self.config.network_tries - 1}
        while True:
            try:
                return do()
            except Failure as failure:
                spent[failure.kind] += 1
                if spent[failure.kind] > again.get(failure.kind.rule, 0):
                    raise
                logger.debug("%s; retrying", failure)
                if failure.kind.rule is Rule.BACK_OFF:
                    self.egress.sleep(self.config.backoff_seconds * 2.0 ** (spent[failure.kind] - 1))

    def _refusal(self, row: Row, failure: Failure) -> Outcome:
        if failure.kind.rule is Rule.COOL_DOWN:
            self.egress.record_refusal(str(failure))
            return self._postponed(row, failure.reason, str(failure), failure.kind.value)
        message = f"{failure} {failure.kind.advice}".strip()
        state = STATES[failure.kind.rule]
        return Outcome(row["unit"], state, failure.reason, message, error_class=failure.kind.value)

    def _postponed(self, row: Row, reason: str, message: str, error_class: str = "") -> Outcome:
        """Pending: back to the queue during this egress's cooldown, or for the next run once all have given up."""
        exhausted = all(self._egress(egress).given_up for egress in self.config.egress)
        outputs = {} if exhausted else {"pause_seconds": self.egress.cooldown_left()}
        return Outcome(row["unit"], "pending", reason, message, outputs, error_class=error_class)

    def _canary_failure(self) -> Failure | None:
        try:
            self._look_up(self.config.canary)
        except Failure as failure:
            return failure
        return None

    def _look_up(self, url: str, per_hour: float = 0.0) -> Info:
        self.egress.wait_turn(per_hour)
        return self.site.look_up(url)

    def _announced(self, row: Row) -> dict[str, Any]:
        if self.videos.existing_outputs(row):
            return {"announced": None}
        info = self._look_up(row["url"], self.config.sweep_per_hour)
        self.egress.record_success()
        return {"announced": describe(info)}

    def _fetched(self, row: Row) -> dict[str, Any]:
        info = self._look_up(row["url"])
        part = self.site.fetch(info, self.videos.parts, row["unit"])
        self.egress.record_success()
        try:
            check_talk(part, info.get("duration"))
        except Failure:
            part.unlink()  # the next attempt starts from scratch
            raise
        return self.videos.take_in(part, row, describe(info))
