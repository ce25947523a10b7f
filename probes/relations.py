"""Measure what holds between tokens or classes: who attends to whom, how alike tokens are, experts, the logits' log Z."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from . import attention, experts, logits, tokens
from .anatomy import Anatomy, Point
from .attention import unseen
from .counted import Counted
from .function_taps import FunctionTaps, Guard
from .hooked import is_recomputing
from .logits import LogitTaps
from .padding import masks_of
from .schema import TABLES
from .tokens import TokenTaps
from .wrappers import here

_ROWS: dict[str, Callable[[Counted], dict[str, Any] | None]] = {
    "attention": attention.row_of,
    "experts": experts.row_of,
    "tokens": tokens.row_of,
    "logits": logits.row_of,
}


class RelationTaps:
    """The tables attention, tokens, experts and logits of one probe; silent outside the sampled steps.

    ``guard(where, action)`` runs every measurement; it must not let an exception out unless training is to stop.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, guard: Guard, *, exact_logits: bool = True) -> None:
        """Prepare; nothing is hooked yet. Without ``exact_logits`` attention is only bounded by query and key norms."""
        self._functions = FunctionTaps(model, anatomy, guard, exact_logits=exact_logits)
        self._tokens = TokenTaps(anatomy)
        self._logits = LogitTaps(anatomy)
        self._guard = guard
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._anatomy, self._n_forwards, self._has_told = anatomy, 0, False

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], micro_step: int) -> None:
        """Look at the forward that begins with these arguments."""
        self._functions.attach()
        self._tokens.begin(micro_step, masks_of(self._anatomy, kwargs))
        self._logits.begin(micro_step)
        self._functions.begin(args, kwargs)

    def end(self, *, failed: bool = False) -> None:
        """Look no longer; a forward that failed is forgotten."""
        self._functions.end(failed=failed)
        self._n_forwards += not failed
        self._tokens.end(failed=failed)
        self._logits.end(failed=failed)

    def detach(self) -> None:
        """Take the hooks off."""
        self._functions.detach()

    def take(self) -> tuple[list[Counted], str | None]:
        """Copy what a step gave to the host; return it and once, in a sentence, whose attention was not seen."""
        found = [*self._functions.counted(), *self._tokens.counted(), *self._logits.counted()]
        told = None
        if self._n_forwards and not self._has_told:
            told = unseen(self._anatomy, [each.place for each in found if each.table == "attention"])
        self._has_told, self._n_forwards = self._has_told or told is not None, 0
        return found, told

    def hold(self, step: int, counted: Iterable[Counted]) -> None:
        """Keep the rows of a step until they are written."""
        for each in counted:
            row = _ROWS[each.table](each)
            if row is not None:
                self._rows.setdefault(each.table, []).append({**row, "step": step})

    def write(self, append: Callable[[str, dict[str, Any]], None]) -> None:
        """Hand everything held to ``append(table, columns)`` and forget it."""
        held, self._rows = self._rows, {}
        for name, rows in held.items():
            if rows:
                append(name, {column: [row.get(column) for row in rows] for column in TABLES[name]})

    def view(self, point: Point) -> Callable[[Tensor], None] | None:
        """Return what is to be shown the tensors that pass ``point`` in a forward; None where nothing looks at them."""
        for where, taps in (("tokens", self._tokens), ("logits", self._logits)):
            if point in taps.points:
                return partial(self._look, where, partial(taps.see, point))
        return None

    def _look(self, where: str, see: Callable[[Tensor], None], tensor: Tensor) -> None:
        if not is_recomputing():
            self._guard(where, partial(see, here(tensor)))
