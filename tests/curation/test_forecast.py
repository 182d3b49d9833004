"""Forecast from a sample, and the account afterwards, against numbers worked out by hand."""

import pytest

from common.ledger import Outcome
from curation.download import DownloadConfig
from curation.exit import ExitConfig
from curation.forecast import forecast, summarise_downloads


def swept(alive: int, dead: dict[str, int], size: int | None = 36_000_000) -> list[Outcome]:
    """Outcomes of a sweep: videos of ten minutes, dead ones by reason, and one that waits."""
    found = {"announced": {"duration": 600, "bytes": size}}
    outcomes = [Outcome(f"a{number}", "kept", outputs=found) for number in range(alive)]
    outcomes += [Outcome(f"{why}{number}", "rejected", why) for why, count in dead.items() for number in range(count)]
    return [*outcomes, Outcome("waits", "pending", "bot_check")]


def test_a_sample_tells_what_all_will_come_to() -> None:
    exits = (ExitConfig("a", per_hour=300), ExitConfig("b", per_hour=100))
    told = forecast(DownloadConfig(exits=exits), 290_000, swept(70, {"removed": 20, "private": 10}))
    assert (told.looked_up, told.alive_share, told.dead) == (100, 0.7, {"removed": 20, "private": 10})
    assert told.hours == pytest.approx(290_000 * 0.7 / 6)
    assert told.gigabytes == pytest.approx(290_000 * 0.7 * 0.036)
    assert told.days == pytest.approx(290_000 * 0.7 / 400 / 24)
    assert told.lines()[0] == "100 of 290000 sources looked up: 70 % alive (dead: removed 20, private 10)"


def test_the_slower_of_rate_and_bandwidth_decides() -> None:
    exit = ExitConfig(per_hour=3600, max_bytes_per_second=10_000_000)
    told = forecast(DownloadConfig(exits=(exit,)), 1000, swept(10, {}))
    assert told.days == pytest.approx(1000 * 3.6 / 86_400)
    unknown = forecast(DownloadConfig(exits=(exit,)), 1000, swept(10, {}, None))
    assert unknown.gigabytes is None and unknown.days == pytest.approx(1000 / 86_400)


def test_no_sample_no_forecast() -> None:
    with pytest.raises(ValueError, match="No source was looked up"):
        forecast(DownloadConfig(), 10, [Outcome("a", "pending")])


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
        "downloads: 10 failed, 10 kept, 5.00 GB (not here: forbidden 10)",
        "media refused with 403: 10.0 % in the first half, 200.0 % in the second; it rises: upgrade yt-dlp",
    ]
    assert len(summarise_downloads([fetched(1)]).lines()) == 1
