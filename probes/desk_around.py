"""Stand around a desk and hand everything on: what takes a look at some of it extends this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from .anatomy import Anatomy
from .desk import Desk
from .host_copies import ScalarCopies
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .reading import Reading
from .step_gauge import Parts
from .taps import Taps


class DeskAround:
    """Hands everything on to the desk within."""

    def __init__(self, inner: Desk) -> None:
        """Hand on to ``inner``."""
        self._inner = inner

    @property
    def until(self) -> int | None:
        """As the desk within has it."""
        return self._inner.until

    @property
    def is_idle(self) -> bool:
        """As the desk within has it."""
        return self._inner.is_idle

    def agree(self, found: Anatomy | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Anatomy | None:
        """Hand on."""
        return self._inner.agree(found, args, kwargs)

    def know(self, anatomy: Anatomy, taps: Taps, parameters: ParameterTaps) -> None:
        """Hand on."""
        self._inner.know(anatomy, taps, parameters)

    def hold(
        self, step: int, readings: list[Reading], numbers: ParameterNumbers | None, scale: Tensor | None
    ) -> str | None:
        """Hand on."""
        return self._inner.hold(step, readings, numbers, scale)

    def close_step(
        self, row: dict[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]], parts: Parts | None
    ) -> None:
        """Hand on."""
        self._inner.close_step(row, scalars, groups, parts)

    def flush(self, *, only_full: bool = False) -> None:
        """Hand on."""
        self._inner.flush(only_full=only_full)

    def close(self, *, has_failed: bool) -> None:
        """Hand on."""
        self._inner.close(has_failed=has_failed)
