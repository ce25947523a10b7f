"""Watch torch's functions that clip gradients, while a probe is attached: the norm before, and by what they multiplied.

``clip_grad_norm_`` calls its inner function through its module, so that code which imported the outer one early is seen too.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad

from .wrappers import here, is_summand, n_summands

INNER = "_clip_grads_with_norm_"
PUBLIC = "clip_grads_with_norm_"
SMALL = 1e-6  # what torch adds to the norm before it divides by it
Guard = Callable[[str, Callable[[], None]], None]
See = Callable[[list[Tensor], float, Tensor], None]

_watchers: list[weakref.WeakMethod[See]] = []  # a probe that is dropped unclosed watches no more
_originals: dict[str, Any] = {}


class ClipWatch:
    """What clipping did to one model's gradients since the last ``take``; others' calls are left alone.

    Attributes:
        is_on: whether this version of torch has the function that is watched.
    """

    def __init__(self, model: nn.Module, guard: Guard) -> None:
        """Start to watch; ``guard(where, action)`` keeps errors of ours away from the loop that clips."""
        self._guard = guard
        self.follow(model)
        self._clipped: set[int] = set()
        self._energy: Tensor | None = None
        self._coefficient: Tensor | None = None
        self._parts: list[tuple[Tensor, float]] = []
        self.is_on = _watch(self._see)
        weakref.finalize(self, _put_back)

    def follow(self, model: nn.Module) -> None:
        """Watch the parameters that the model has now."""
        self._members = {id(parameter) for parameter in model.parameters()}

    def take_part(self) -> tuple[Tensor, float] | None:
        """Return what this process adds, times how many add, to the squared norm of clipped gradients, and the limit.

        The limit is NaN where several calls clipped; None where none did.
        """
        energies, self._parts = self._parts, []
        if not energies:
            return None
        limit = energies[0][1] if len(energies) == 1 else math.nan
        return torch.stack([energy for energy, _ in energies]).sum(), limit

    def take(self) -> tuple[Tensor | None, Tensor | None]:
        """Return the norm before clipping and the smallest coefficient, on the device; None where nothing was clipped."""
        norm = None if self._energy is None else self._energy.sqrt()
        coefficient, self._energy, self._coefficient = self._coefficient, None, None
        self._clipped.clear()
        return norm, coefficient

    def close(self) -> None:
        """Stop watching; the last one puts torch's functions back."""
        _unwatch(self._see)

    def _see(self, parameters: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
        self._guard("clipping", lambda: self._take_in(parameters, max_norm, total_norm))

    def _take_in(self, parameters: list[Tensor], max_norm: float, total_norm: Tensor) -> None:
        mine = {id(parameter) for parameter in parameters} & self._members
        if not mine:
            return
        if is_summand(total_norm):
            # Norms of parts, before their ranks have put them together.
            energy = here(total_norm).detach().to(torch.float32).square()
            self._parts.append((n_summands(total_norm) * energy, max_norm))
        total = here(total_norm)
        if is_summand(total_norm) or type(total) is not Tensor:
            return
        norm = total.detach().to(torch.float32)
        coefficient = torch.clamp(max_norm / (norm + SMALL), max=1.0)
        if not mine & self._clipped:  # a second clipping of the same gradients has no norm before clipping
            self._energy = (
                norm.square() if self._energy is None else self._energy + norm.square().to(self._energy.device)
            )
        before = self._coefficient
        self._coefficient = coefficient if before is None else torch.minimum(before, coefficient.to(before.device))
        self._clipped |= mine


def _watch(see: See) -> bool:
    if not callable(getattr(clip_grad, INNER, None)):
        return False
    found = getattr(clip_grad, INNER)
    if found is not _shown:
        _originals[INNER] = found
        setattr(clip_grad, INNER, _shown)
        if getattr(nn.utils, PUBLIC, None) is found:
            _originals[PUBLIC] = found
            setattr(nn.utils, PUBLIC, _shown)
    _watchers.append(weakref.WeakMethod(see))
    return True


def _unwatch(see: See) -> None:
    _watchers[:] = [each for each in _watchers if each() not in (None, see)]
    _put_back()


def _put_back() -> None:
    """Put torch's functions back where nobody watches any more."""
    _watchers[:] = [each for each in _watchers if each() is not None]
    if _watchers:
        return
    for owner, name in ((clip_grad, INNER), (nn.utils, PUBLIC)):
        # Where another library has put its own in the meantime, it stays.
        if name in _originals and getattr(owner, name) is _shown:
            setattr(owner, name, _originals[name])


def _shown(
    parameters: Tensor | Iterable[Tensor], max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Do what torch's function does, and show it."""
    given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    for each in tuple(_watchers):
        see = each()
        if see is not None:
            see(given, float(max_norm), total_norm)
    _originals[INNER](given, max_norm, total_norm, foreach)
