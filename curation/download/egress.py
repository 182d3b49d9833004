"""One way out to the network and its manners: how often it asks, and how long it is silent after a site said no.

The state is a small file, so that manners outlive the process: a run that is killed and started again neither asks
faster nor cuts a rest short.
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

BURST_SECONDS = 60.0  # an exit that was idle may catch up on this much


@dataclass
class _State:
    tokens: float
    counted: float  # when the tokens were counted, seconds since the epoch
    busy: float  # when it last asked for something or got it
    cooldown_until: float = 0.0
    strikes: int = 0  # rests since the last video that came


class Egress:
    """The manners of one exit. `clock` gives seconds since the epoch, `sleep` waits for some."""

    def __init__(
        self,
        config: EgressConfig,
        rest: CooldownConfig,
        state_file: Path,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.rest = config, rest
        self.sleep = sleep
        self._file, self._clock = state_file, clock
        self._state = self._load()

    def wait_turn(self, per_hour: float = 0.0) -> None:
        """Wait until another look-up is within the manners (`per_hour` replaces the exit's own rate), and count it."""
        rate = per_hour or self.config.per_hour
        state, now = self._state, self._clock()
        # A clock set back must not keep the exit waiting.
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
        """Seconds for which the exit still has to be silent."""
        return max(0.0, self._state.cooldown_until - self._clock())

    @property
    def cooling_down(self) -> bool:
        """Whether it has rested and nothing has come through it since."""
        return self._state.strikes > 0

    @property
    def given_up(self) -> bool:
        """Whether it was refused so often in a row that it is of no use in this run."""
        return self._state.strikes >= self.rest.give_up_after

    def record_refusal(self, message: str) -> float:
        """The site has had enough: rest. Returns for how many seconds."""
        state = self._state
        seconds = min(self.rest.max_cooldown_seconds, self.rest.cooldown_seconds * 2.0**state.strikes)
        state.strikes += 1
        state.cooldown_until = self._clock() + seconds
        self._save()
        name = self.config.name
        logger.warning("exit %s is silent for %.0f s (time %d in a row): %s", name, seconds, state.strikes, message)
        return seconds

    def record_success(self) -> None:
        """A video, or word of one, has come through."""
        if self._state.strikes:
            logger.info("exit %s is through again", self.config.name)
        self._state.strikes, self._state.cooldown_until, self._state.busy = 0, 0.0, self._clock()
        self._save()

    def reset_strikes(self) -> None:
        """A new run tries an exit that had been given up, once its rest is over."""
        if self.given_up and not self.cooldown_left():
            self._state.strikes = self.rest.give_up_after - 1
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
            logger.warning("%s is not the state of an exit and is begun anew", self._file)
            return fresh

    def _save(self) -> None:
        write_json(self._file, asdict(self._state))
