"""The account of a download against numbers worked out by hand."""

from pathlib import Path

from common.ledger.store import Ledger, Outcome
from curation.download.summary import recorded_downloads, summarise_downloads


def fetched(hour: int, state: str = "kept", forbidden: int = 0) -> Outcome:
    """An outcome of the download stage."""
    outputs = {"asked": f"2026-01-01T{hour:02d}:00:00", "forbidden": forbidden, "bytes": 500_000_000}
    return Outcome(f"v{hour}{state}", state, "" if state == "kept" else "forbidden", outputs=outputs)  # type: ignore[arg-type]


def test_a_rising_share_of_403_is_said() -> None:
    calm = [fetched(hour, forbidden=int(hour == 3)) for hour in range(10)]
    rising = calm + [fetched(hour, "failed", 2) for hour in range(10, 20)]
    assert not summarise_downloads(calm).forbidden_rises
    summary = summarise_downloads(reversed(rising))
    assert summary.forbidden == (0.1, 2.0) and summary.forbidden_rises
    assert summary.lines() == [
        "downloads: 10 failed, 10 kept, 5.00 GB (missing: forbidden 10)",
        "media refused with 403: 10.0 % in the first half, 200.0 % in the second; rising: upgrade yt-dlp",
    ]
    assert len(summarise_downloads([fetched(1)]).lines()) == 1


def test_the_account_is_of_the_settings_used_last(tmp_path: Path) -> None:
    assert recorded_downloads(tmp_path) == []
    for fingerprint, outcomes in (("old", [fetched(1), fetched(2)]), ("new", [fetched(3), fetched(4, "failed")])):
        with Ledger(tmp_path).open("download", fingerprint) as log:
            for outcome in outcomes:
                log.append((outcome.unit, "hash"), outcome)
            log.compact()
    assert sorted(one.unit for one in recorded_downloads(tmp_path)) == ["v3kept", "v4failed"]
    assert summarise_downloads(recorded_downloads(tmp_path)).states == {"kept": 1, "failed": 1}
