"""Egress: rate limit and back-off of one network path to the sites.

The state is a small file, so that limits hold across processes: a killed and restarted run neither sends more requests
nor shortens a cooldown.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from common.runs import read_json, write_json
from curation.config import HOUR, CooldownConfig, EgressConfig

logger = logging.getLogger(__name__)

BURST_SECONDS = 60.0  # burst that an idle egress may catch up on


@dataclass
class _State:
    tokens: float
    counted: float  # when the tokens were counted, seconds since the epoch
    busy: float  # time of the last request or success
    cooldown_until: float = 0.0
    strikes: int = 0  # refusals since the last success


class Egress:
    """Token bucket and cooldown of one egress. `clock` gives seconds since the epoch, `sleep` waits."""

    def __init__(
        self,
        config: EgressConfig,
        cooldown: CooldownConfig,
        state_file: Path,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.cooldown = config, cooldown
        self.sleep = sleep
        self._file, self._clock = state_file, clock
        self._state = self._load()

    def wait_turn(self, per_hour: float = 0.0) -> None:
        """Wait until the rate limit allows another look-up (`per_hour` replaces the configured rate), and count it."""
        rate = per_hour or self.config.per_hour
        state, now = self._state, self._clock()
        # A clock set back must not block the egress.
        elapsed = max(0.0, now - state.counted)
        tokens = min(self._burst(rate), state.tokens + elapsed * rate / HOUR)
        pause = random.uniform(*self.config.pause_seconds) - max(0.0, now - state.busy)
        wait = max(0.0, pause, (1 - tokens) * HOUR / rate)
        if wait > 0:
            self.sleep(wait)
        state.tokens = tokens + wait * rate / HOUR - 1
        state.counted = state.busy = now + wait
        self._save()

    def cooldown_left(self) -> float:
        """Remaining seconds of the cooldown."""
        now, longest = self._clock(), self.cooldown.max_cooldown_seconds
        if self._state.cooldown_until > now + longest:  # the clock was set back since
            self._state.cooldown_until = now + longest
            self._save()  # or every new process would wait as long again
        return max(0.0, self._state.cooldown_until - now)

    @property
    def cooling_down(self) -> bool:
        """Whether it was refused and nothing has succeeded since."""
        return self._state.strikes > 0

    @property
    def given_up(self) -> bool:
        """Whether it was refused too often in a row to be used further in this run."""
        return self._state.strikes >= self.cooldown.give_up_after

    def record_refusal(self, message: str) -> float:
        """Start a cooldown after a refusal; returns its seconds."""
        state = self._state
        seconds = min(self.cooldown.max_cooldown_seconds, self.cooldown.cooldown_seconds * 2.0**state.strikes)
        state.strikes += 1
        state.cooldown_until = self._clock() + seconds
        self._save()
        logger.warning(
            "egress %s rate limited, resuming in %.0f s (refusal %d in a row): %s",
            self.config.name,
            seconds,
            state.strikes,
            message,
        )
        return seconds

    def record_success(self) -> None:
        """Reset the cooldown after a successful look-up or download."""
        if self._state.strikes:
            logger.info("egress %s works again", self.config.name)
        self._state.strikes, self._state.cooldown_until, self._state.busy = 0, 0.0, self._clock()
        self._save()

    def reset_strikes(self) -> None:
        """In a new run, give an exhausted egress one more attempt once its cooldown is over."""
        if self.given_up and not self.cooldown_left():
            self._state.strikes = self.cooldown.give_up_after - 1
            self._save()

    def _burst(self, rate: float) -> float:
        return max(1.0, rate * BURST_SECONDS / HOUR)

    def _load(self) -> _State:
        now = self._clock()
        fresh = _State(self._burst(self.config.per_hour), now, 0.0)
        if not self._file.exists():
            return fresh
        try:
            return _State(**read_json(self._file))
        except (ValueError, TypeError):
            logger.warning("%s is not the state of an egress and was reset", self._file)
            return fresh

    def _save(self) -> None:
        write_json(self._file, asdict(self._state))
