"""Rate limit and back-off of an egress on a simulated clock, also across processes."""

from pathlib import Path

import pytest

from curation.config import CooldownConfig, EgressConfig
from curation.download.egress import Egress

HOUR = 3600.0
REST = CooldownConfig(cooldown_seconds=100, max_cooldown_seconds=350, give_up_after=4)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1.75e9

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def make_egress(folder: Path, clock: Clock, **options: object) -> Egress:
    """An egress without pauses by default."""
    config = EgressConfig(**{"pause_seconds": (0.0, 0.0), **options})  # type: ignore[arg-type]
    return Egress(config, REST, folder / "here.json", clock, clock.sleep)


def turns(egress: Egress, clock: Clock, count: int, seconds_each: float = 0.0, **options: float) -> list[float]:
    """The times at which it asked."""
    times = []
    for _ in range(count):
        egress.wait_turn(**options)
        times.append(clock.now)
        clock.now += seconds_each
    return times


def test_no_hour_holds_more_look_ups_than_allowed(tmp_path: Path) -> None:
    clock = Clock()
    times = turns(make_egress(tmp_path, clock, per_hour=120), clock, 250)
    busiest = max(sum(start <= time < start + HOUR for time in times) for start in times)
    assert busiest <= 120 + 2  # the burst of a minute at the very beginning
    assert times[-1] - times[0] == pytest.approx(248 / 120 * HOUR, rel=0.01)


def test_slow_downloads_are_not_slowed_further(tmp_path: Path) -> None:
    clock = Clock()
    times = turns(make_egress(tmp_path, clock, per_hour=60), clock, 20, seconds_each=90)
    assert times[-1] - times[0] == pytest.approx(19 * 90)


def test_an_idle_hour_is_no_credit(tmp_path: Path) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock, per_hour=60)
    turns(egress, clock, 1)
    clock.now += 10 * HOUR
    times = turns(egress, clock, 10)
    assert times[-1] - times[0] == pytest.approx(9 * 60)


def test_pauses_lie_between_least_and_most_after_the_last_video_came(tmp_path: Path) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock, per_hour=1e6, pause_seconds=(2.0, 8.0))
    pauses = []
    for _ in range(50):
        egress.wait_turn()
        clock.now += 30  # the download
        egress.record_success()
        before = clock.now
        egress.wait_turn()
        pauses.append(clock.now - before)
    assert 2 <= min(pauses) < 4 and 6 < max(pauses) <= 8.001


def test_a_rate_of_its_own_replaces_the_exits(tmp_path: Path) -> None:
    clock = Clock()
    times = turns(make_egress(tmp_path, clock, per_hour=300), clock, 80, per_hour=3600)
    assert times[-1] - times[60] == pytest.approx(19)


def test_rests_grow_and_end_with_the_first_video(tmp_path: Path) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock)
    assert egress.cooldown_left() == 0 and not egress.cooling_down
    for seconds in (100, 200, 350, 350):
        assert egress.record_refusal("Sign in to confirm you're not a bot") == seconds
        assert egress.cooldown_left() == pytest.approx(seconds) and egress.cooling_down
        clock.now += seconds
        assert egress.cooldown_left() == 0
    assert egress.given_up
    egress.record_success()
    assert not egress.given_up and not egress.cooling_down
    assert egress.record_refusal("again") == 100


def test_manners_outlive_the_process(tmp_path: Path) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock, per_hour=60)
    turns(egress, clock, 2)
    times = turns(make_egress(tmp_path, clock, per_hour=60), clock, 1)
    assert times[0] - clock.now == pytest.approx(0) and clock.now - 1.75e9 == pytest.approx(120)
    egress.record_refusal("429")
    clock.now += 40
    assert make_egress(tmp_path, clock).cooldown_left() == pytest.approx(60)


def test_a_new_run_tries_an_exit_that_was_given_up_when_its_rest_is_over(tmp_path: Path) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock)
    for _ in range(4):
        egress.record_refusal("429")
    again = make_egress(tmp_path, clock)
    again.reset_strikes()
    assert again.given_up  # it still rests
    clock.now += 351
    again.reset_strikes()
    assert not again.given_up and again.cooling_down


@pytest.mark.parametrize("content", [b"", b'{"tokens": 1', b"[1]", b"null", b'{"a": 1}', b"\xff\xfe"])
def test_a_state_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "here.json").write_bytes(content)
    assert make_egress(tmp_path, Clock()).cooldown_left() == 0


@pytest.mark.parametrize("back", [60.0, HOUR, 400 * 24 * HOUR])
def test_a_clock_that_goes_back_lengthens_no_cooldown_beyond_the_longest(tmp_path: Path, back: float) -> None:
    clock = Clock()
    egress = make_egress(tmp_path, clock)
    egress.record_refusal("429")
    clock.now -= back
    assert 0 < egress.cooldown_left() <= 350
    clock.now += 351
    assert egress.cooldown_left() == 0 and make_egress(tmp_path, clock).cooldown_left() == 0


@pytest.mark.parametrize(
    "options, words",
    [({"name": "a/b"}, "'a/b'"), ({"per_hour": 0}, "per_hour is 0"), ({"pause_seconds": (3.0, 1.0)}, "3.0, 1.0")],
)
def test_impossible_manners_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EgressConfig(**options)  # type: ignore[arg-type]
