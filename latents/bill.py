"""Bill of a latents job: bytes by kind and seconds of encoding, one line of `logs/latents.jsonl` per job."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from common.ledger.jsonlines import JsonLines
from common.ledger.store import Outcome
from common.runs import RunFolder
from common.shards.index import read_index

logger = logging.getLogger(__name__)
LOG = "latents.jsonl"
KINDS = ("latents", "text", "audio", "references")


@dataclass(frozen=True)
class Bill:
    """Bytes of a shard folder by kind, and seconds of encoding in all its jobs so far, of workers, cores and GPUs."""

    clips: int
    failed: int
    hours: float
    latents_bytes: int
    text_bytes: int
    audio_bytes: int
    references_bytes: int
    total_bytes: int
    gb_per_1000_clips: float
    megapixel_frames: float
    seconds: float
    cpu_seconds: float
    gpu_seconds: float

    def line(self) -> str:
        """The bill in one line."""
        kinds = ", ".join(f"{kind} {getattr(self, f'{kind}_bytes') / 1e9:.3g}" for kind in KINDS)
        return (
            f"{self.clips} clips, {self.hours:.3g} h of video, {self.total_bytes / 1e9:.3g} GB ({kinds}), "
            f"{self.gb_per_1000_clips:.3g} GB per 1000 clips; encoded in {self.seconds / 3600:.3g} worker hours"
        )


def make_bill(shards: Path, outcomes: Sequence[Outcome]) -> Bill:
    """The bill from the index of finished shards and the ledger rows of their clips."""
    index = read_index(shards)
    sums = {
        name: pc.sum(index[name]).as_py() or 0 for name in ("size", "seconds", *(f"{kind}_bytes" for kind in KINDS))
    }
    kept = [outcome for outcome in outcomes if outcome.state == "kept"]
    pixels = sum(done.outputs["frames"] * done.outputs["height"] * done.outputs["width"] for done in kept)
    return Bill(
        clips=index.num_rows,
        failed=len(outcomes) - len(kept),
        hours=sums["seconds"] / 3600,
        **{f"{kind}_bytes": sums[f"{kind}_bytes"] for kind in KINDS},
        total_bytes=sums["size"],
        gb_per_1000_clips=sums["size"] / 1e6 / max(index.num_rows, 1),
        megapixel_frames=pixels / 1e6,
        seconds=sum(done.seconds for done in kept),
        cpu_seconds=sum(done.cpu_seconds for done in kept),
        gpu_seconds=sum(done.gpu_seconds for done in kept),
    )


def write_bill(run: RunFolder, outcomes: Sequence[Outcome]) -> None:
    """Log the bill of `run.shards` and append it to the file."""
    bill = make_bill(run.shards, outcomes)
    logger.info("%s", bill.line())
    log = JsonLines(run.logs / LOG)
    log.append(asdict(bill))
    log.close()


def last_bill(run: RunFolder) -> Bill | None:
    """The newest bill of a run; None before its first."""
    rows = list(JsonLines(run.logs / LOG).rows())
    return Bill(**rows[-1]) if rows else None
