"""Comparison of decisions with planted faults: which were found, and for the right reason."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.clips import read_clips
from common.runs import RunFolder, read_json
from miniature.world.planted import Truth

Row = dict[str, Any]

# A fault of one of these kinds must be refused, with one of these among the reasons.
REFUSED_FOR = {
    "blur": {"low_quality"},
    "noise": {"low_quality"},
    "frozen": {"still_picture"},
    "second_face": {"several_faces"},
    "music": {"music", "no_speech"},
    "silence": {"no_speech"},
    "too_short": {"too_short"},
    "fps15": {"low_frame_rate"},
    "duplicate": {"duplicate"},
    "truncated": {"truncated", "unreadable"},
    "no_audio": {"no_audio"},
    "not_a_video": {"not_a_video"},
    "drift": {"drift"},
    "dubbed": {"dubbed"},
    "off_screen": {"off_screen_speaker"},
    "burned_text": {"burned_in_text"},
    "wrong_person": {"wrong_person"},
}
# What else is true of such a source, beside the fault that was planted.
ALSO_TRUE = {"wrong_person": {"several_faces"}, "too_long": {"too_short"}, "shot_cut": {"too_short"}}
_FRAME = 1 / 25
_SHORTEST_CLIP = 3.0


@dataclass(frozen=True)
class Judged:
    """One source: what was planted, and what became of it."""

    truth: Truth
    source_reason: str
    clips: Sequence[Row]
    variable_frame_rate: bool = False

    @property
    def reasons(self) -> set[str]:
        """Every reason given for refusing the source or one of its clips."""
        return {reason for clip in self.clips for reason in clip["reasons"]} | ({self.source_reason} - {""})

    @property
    def kept(self) -> list[Row]:
        """Its clips that were kept."""
        return [clip for clip in self.clips if clip["decision"] == "kept"]


def score_truth(run: RunFolder, folder: Path) -> Row:
    """Table of found faults, false refusals and recovered offsets of a run over the drawn sources of `folder`.

    Keys: `faults` [{kind, cases, found, wrong_reason, recall, precision}], precision against the sources of other kinds
    that were taken for this one; `unfaulted`, `false_refusals` clips, `false_reasons`; `offsets` {cases, exact, zero}:
    moved by just as much as planted, and at 0 when scored again; `framing` {cases, right} of the unfaulted clips.
    """
    judged = _judge(run, folder)
    offsets = [item for item in judged if item.truth.kind == "offset"]
    unfaulted = [
        clip for item in judged if item.truth.kind not in REFUSED_FOR for clip in item.clips if _should_be_kept(clip)
    ]
    return {
        "faults": [_row(kind, judged) for kind in _kinds(judged)],
        "unfaulted": len(unfaulted),
        "false_refusals": sum(clip["decision"] != "kept" for clip in unfaulted),
        "false_reasons": dict(Counter(reason for clip in unfaulted for reason in clip["reasons"])),
        "offsets": {
            "cases": len(offsets),
            "exact": sum(_offset_found(item) for item in offsets),
            "zero": sum(_left_at_zero(item) for item in offsets),
        },
        "framing": _framing([item for item in judged if item.truth.kind == "clean"]),
    }


def _judge(run: RunFolder, folder: Path) -> list[Judged]:
    clips: dict[str, list[Row]] = {}
    for clip in read_clips(run.clips_parquet):
        clips.setdefault(clip["video_id"], []).append(clip)
    sources = pq.read_table(run.root / "sources.parquet").to_pylist()
    judged = []
    for row in sorted(sources, key=lambda row: row["video_id"]):
        sidecar = (folder / row["video_id"]).with_suffix(".json")
        planted = read_json(sidecar).get("truth") if sidecar.exists() else None
        if planted is None:  # somebody's own video among the drawn ones
            continue
        truth = Truth(**planted)
        own = sorted(clips.get(row["video_id"], []), key=lambda clip: clip["t_start"])
        reason = row["reason"] if row["state"] != "kept" else ""
        judged.append(Judged(truth, reason, own, bool(row.get("variable_frame_rate"))))
    return judged


def _kinds(judged: Sequence[Judged]) -> list[str]:
    return [kind for kind in dict.fromkeys(item.truth.kind for item in judged) if kind != "clean"]


def _row(kind: str, judged: Sequence[Judged]) -> Row:
    cases = [case for case in judged if case.truth.kind == kind]
    others = [case for case in judged if case.truth.kind != kind]
    if kind in REFUSED_FOR:
        refused = [case for case in cases if not case.kept]
        found = sum(bool(case.reasons & REFUSED_FOR[kind]) for case in refused)
        wrong, claimed = len(refused) - found, sum(_taken_for(kind, case) for case in others)
    else:
        found = sum(_CORRECTED[kind](case) for case in cases)
        wrong = sum(not case.kept and not _CORRECTED[kind](case) for case in cases)
        claimed = sum(_TAKEN_FOR_CORRECTED[kind](case) for case in others)
    return {
        "kind": kind,
        "cases": len(cases),
        "found": found,
        "wrong_reason": wrong,
        "recall": round(found / len(cases), 4),
        "precision": round(found / (found + claimed), 4) if found + claimed else None,
    }


def _taken_for(kind: str, case: Judged) -> bool:
    """Whether a source of another kind was refused for this one's reasons, which are not true of it."""
    true = REFUSED_FOR.get(case.truth.kind, set()) | ALSO_TRUE.get(case.truth.kind, set())
    return bool((case.reasons & REFUSED_FOR[kind]) - true)


def _moved_for_nothing(case: Judged) -> bool:
    return any(clip["sync_offset_applied"] for clip in case.kept)


def _in_pieces(case: Judged) -> bool:
    return len(case.clips) > 1 and case.truth.kind not in ("shot_cut", "too_long")


def _framing(cases: Sequence[Judged]) -> Row:
    drawn = {"face": "head", "half": "semi"}
    clips = [(case, clip) for case in cases for clip in case.clips if clip.get("framing")]
    return {"cases": len(clips), "right": sum(clip["framing"] == drawn[case.truth.framing] for case, clip in clips)}


def _should_be_kept(clip: Row) -> bool:
    """What is left over when a long shot is cut into pieces may rightly be too short."""
    return clip["duration"] >= _SHORTEST_CLIP


def _offset_found(case: Judged) -> bool:
    """Audio that comes k frames late has offset -k, and is moved by as much."""
    return len(case.clips) == 1 and case.clips[0]["sync_offset_applied"] == -case.truth.shift


def _left_at_zero(case: Judged) -> bool:
    """Whether the score taken after moving the audio finds it in its place."""
    return len(case.clips) == 1 and case.clips[0]["sync_offset"] == case.clips[0]["sync_offset_applied"]


def _cut_found(case: Judged) -> bool:
    """No clip spans the cut, and one ends and one begins within a frame of it."""
    cut = case.truth.seconds
    spans = any(clip["t_start"] < cut - 2 * _FRAME and clip["t_end"] > cut + 2 * _FRAME for clip in case.clips)
    ends = any(abs(clip["t_end"] - cut) <= 1.01 * _FRAME for clip in case.clips)
    begins = any(abs(clip["t_start"] - cut) <= 1.01 * _FRAME for clip in case.clips)
    return not spans and ends and begins


def _pieces_fit(case: Judged) -> bool:
    return len(case.kept) >= 1 and all(clip["duration"] <= 20 + _FRAME for clip in case.kept)


def _rate_put_right(case: Judged) -> bool:
    """Kept whole, at its own length, with lips and audio still together."""
    return any(
        abs(c["duration"] - case.truth.seconds) <= 2 * _FRAME and not c["sync_offset_applied"] for c in case.kept
    )


_CORRECTED: dict[str, Callable[[Judged], bool]] = {
    "offset": _offset_found,
    "shot_cut": _cut_found,
    "too_long": _pieces_fit,
    "variable_rate": _rate_put_right,
}
_TAKEN_FOR_CORRECTED: dict[str, Callable[[Judged], bool]] = {
    "offset": _moved_for_nothing,
    "shot_cut": _in_pieces,
    "too_long": _in_pieces,
    "variable_rate": lambda case: case.variable_frame_rate,
}
