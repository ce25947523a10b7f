"""Keep errors of ours away from training: log and record each once, go on, and give up after too many."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .errors import RheoscopeError

MOST_FAULTS = 20  # different errors inside the probe before it gives up measuring
MOST_SAID = 100
GAVE_UP = (
    f"{MOST_FAULTS} different errors inside the probe: from here on it measures nothing but losses and learning rates."
)
logger = logging.getLogger("rheoscope")
Tell = Callable[[str, str], None]


class Faults:
    """What went wrong, or is used wrongly, in one probe."""

    def __init__(self, tell: Tell, *, strict: bool) -> None:
        """Tell ``tell(kind, sentence)`` of everything once; ``strict`` raises errors."""
        self._tell, self._strict = tell, strict
        self._said: set[str] = set()
        self._failed: set[str] = set()

    @property
    def are_too_many(self) -> bool:
        """Whether the probe should measure no more."""
        return len(self._failed) >= MOST_FAULTS

    def say(self, kind: str, sentence: str, *, key: str = "") -> None:
        """Log and record once what the user should know: once a kind, or once a ``key``."""
        if (key or kind) not in self._said and len(self._said) < MOST_SAID:
            self._said.add(key or kind)
            logger.warning(sentence)
            self._tell(kind, sentence)

    def measure(self, where: str, action: Callable[[], None]) -> None:
        """Run an action of the measuring side, until too many have failed."""
        if not self.are_too_many:
            self.guard(where, action)

    def guard(self, where: str, action: Callable[[], None]) -> None:
        """Run ``action``; an error of ours is logged once and recorded, and training goes on."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - training goes on
            self.fail(where, error)

    def fail(self, where: str, error: Exception) -> None:
        """Log and record an error of ours once; raise it where the user asked for that."""
        if self._strict:
            raise error
        known = isinstance(error, RheoscopeError)
        sentence = str(error) if known else f"{type(error).__name__} in the probe's {where}: {str(error)[:300]}"
        if sentence not in self._failed and len(self._failed) < MOST_FAULTS:
            self._failed.add(sentence)
            exc_info = None if known else error
            logger.warning("Training goes on without a part of the measurement. %s", sentence, exc_info=exc_info)
            self._tell("fault", sentence)
            if len(self._failed) == MOST_FAULTS:
                self.say("gave_up", GAVE_UP)
