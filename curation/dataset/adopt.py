"""Adoption of outcomes that an earlier version of the code has recorded, where a stage's meaning did not change.

A stage gets another fingerprint when its settings are written down in another form, and what was recorded under the
old one would not be found: 774,207 clips would be scored again for nothing. In ledgers of format 1 (commit 35d976c)
rows carried the scan's boxes, and `PeopleConfig` was a setting of every stage that looks at faces. What such a stage
recorded is taken over under today's fingerprint and input hash, once, when a run goes on.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.executors.stage import Stage
from common.ledger.store import LEDGER_FORMAT, STATES, Ledger, Outcome, key_table, ledger_files
from common.runs import fingerprint, write_format_version
from curation.config import CurationConfig
from curation.rows import Scan
from curation.stages.scan import ScanStage, read_scan, write_scan
from curation.stages.shots import split_source

logger = logging.getLogger(__name__)
Row = Mapping[str, Any]

_CLIP = ("unit", "source_sha256", "t_start", "t_end", "crop", "size", "faces")
_POINT = (*_CLIP, "x", "y", "point_at")


class Earlier(NamedTuple):
    """How format 1 recorded a stage: its version, settings, the row fields it read, and its outputs as today's."""

    version: str
    params: dict[str, Any]
    reads: tuple[str, ...]
    convert: Callable[[Row, Outcome], Outcome] = lambda row, outcome: outcome


def earlier_form(stage: Stage[Any], config: CurationConfig) -> Earlier | None:
    """The form of a stage in format 1; None for one that is recorded today as it was then, or that is new."""
    people = {"people": asdict(config.people)}
    speaker = _without(asdict(config.speaker), "lip_lead")
    forms = {
        "fetch": Earlier("1", {}, ("unit", "url", "again")),
        "download": Earlier("1", stage.params, ("unit", "url", "refused", "again")),
        "scan": Earlier("2", _without(asdict(config.scan), "shots", "transition_score"), ("unit", "sha256")),
        "active_speaker": Earlier("1", people, _POINT),
        "lips": Earlier("1", people | {"speaker": speaker}, (*_POINT, "speaking_pct")),
        "sync": Earlier(
            "3",
            people | {"speaker": speaker, "sync": asdict(config.sync)},
            (*_POINT, "sha256", "lips", "speaking_pct"),
        ),
        "framing": Earlier("1", people | {"framing": asdict(config.framing)}, (*_CLIP, "face_track_id")),
        "text": Earlier("1", people | {"text": asdict(config.text)}, (*_CLIP, "face_track_id")),
    }
    form = forms.get(stage.name)
    if form is not None and isinstance(stage, ScanStage):
        judge = "insightface" if stage.face_detector.path else "cascade"
        return form._replace(convert=lambda row, outcome: _scan_to_file(stage.folder, row, outcome, judge))
    return form


def _without(params: dict[str, Any], *later: str) -> dict[str, Any]:
    """Settings less those that came later."""
    return {name: value for name, value in params.items() if name not in later}


def needs_adoption(ledger: Ledger) -> bool:
    """Whether a ledger holds outcomes of format 1 that have not been adopted to the end.

    Raises FormatVersionError for a ledger that newer code has written.
    """
    return bool(ledger_files(ledger.folder)) and ledger.format_version() < LEDGER_FORMAT


def mark_adopted(ledger: Ledger) -> None:
    """Record that the ledger is of today's format."""
    write_format_version(ledger.folder, LEDGER_FORMAT)


def adopt(stage: Stage[Any], rows: Sequence[Row], config: CurationConfig, ledger: Ledger) -> int:
    """Record what format 1 knows of these rows as outcomes of `stage`; returns how many. Rows of clips need `faces`.

    Kept and rejected units alone: what failed is tried anew. Killed, it can be done again. Raises RuntimeError when
    another run writes this stage.
    """
    form = earlier_form(stage, config)
    if form is None or not rows:
        return 0
    old = fingerprint([stage.name, form.version, form.params, stage.models])
    if not ledger_files(ledger.folder, stage.name, old):
        return 0
    old_keys = key_table((row["unit"], fingerprint({n: row.get(n) for n in form.reads})) for row in rows)
    hashes = [stage.input_hash(dict(row)) for row in rows]
    new_keys = key_table((row["unit"], digest) for row, digest in zip(rows, hashes, strict=True))
    settled = [STATES.index("kept"), STATES.index("rejected")]
    with ledger.open(stage.name, old) as before, ledger.open(stage.name, stage.fingerprint) as log:
        log.lock()
        recorded, _ = log.last(new_keys)
        states, _ = before.last(old_keys)
        positions = np.flatnonzero((recorded < 0) & np.isin(states, settled))
        outcomes = before.outcomes(old_keys.take(positions))
        for position, outcome in zip(positions.tolist(), outcomes, strict=True):
            log.append((rows[position]["unit"], hashes[position]), form.convert(rows[position], outcome))
        log.compact()
    if len(positions):
        logger.info("%s: %d outcomes of an earlier version are adopted", stage.name, len(positions))
    return len(positions)


def faces_of_clips(config: CurationConfig, sources: Sequence[Row], folder: Path) -> dict[str, Any]:
    """clip_id -> the `faces` that a clip's row carried in format 1, from the scans of its sources in `folder`."""
    return {
        piece.row["unit"]: piece.faces
        for source in sources
        for piece in split_source(config.cut, source, read_scan(folder / source["scan_file"]))  # type: ignore[arg-type]
    }


def _scan_to_file(folder: Path, row: Row, outcome: Outcome, face_judge: str) -> Outcome:
    """In format 1 the outputs of a scan held what is now in a file."""
    if outcome.state != "kept":
        return outcome
    faces = [(time, boxes) for time, boxes in outcome.outputs["faces"]]
    name, digest = write_scan(folder, row["unit"], Scan(faces, outcome.outputs["motion"]))
    outputs = {"cuts": outcome.outputs["cuts"], "shot_judge": "content", "face_judge": face_judge}
    outputs |= {"scan_file": name, "scan_sha256": digest}
    return replace(outcome, outputs=outputs)
