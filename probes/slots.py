"""Follow a model's parameters by their names, also where one is replaced, and say which cannot be measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from .wrappers import parameters_of

MOST_NAMES = 3  # named in one sentence


class Slots:
    """Where a model keeps its parameters.

    Attributes:
        names: dotted names, of each parameter the first.
        parameters: what stands there now; None where that cannot be measured any longer.
        not_measured: in sentences, parameters whose numbers are left out from the start.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look all parameters up; a tied one counts once."""
        self._model = model
        named: dict[str, Tensor] = dict(parameters_of(model))
        self.names = [name for name, p in named.items() if _why_not(p) is None]
        self.parameters: list[Tensor | None] = [named[name] for name in self.names]
        self.not_measured = _left_out(named)
        self._shapes = [named[name].shape for name in self.names]
        self._left_out = set(named) - set(self.names)
        self._added: list[str] = []
        self._look_up()

    def renew(self) -> list[str]:
        """Look again where something was replaced; return in sentences what was."""
        if all(held.get(key) is value for held, key, value in self._held):
            return []
        now = dict(parameters_of(self._model, remove_duplicate=False))
        moved = {id(p): p for p in now.values()}
        replaced: list[str] = []
        gone: list[str] = []
        for row, (name, shape) in enumerate(zip(self.names, self._shapes, strict=True)):
            # One that only got another name, as a layer that was wrapped, is the same.
            found = moved.get(id(self.parameters[row]), now.get(name))
            if found is not None and (found.shape != shape or _why_not(found) is not None):
                found = None
            if found is not self.parameters[row]:
                (gone if found is None else replaced).append(name)
                self.parameters[row] = found
        self._look_up()
        known, named = {id(p) for p in self.parameters}, {*self.names, *self._left_out}
        new = [name for name, p in parameters_of(self._model) if id(p) not in known and name not in named]
        told = []
        if replaced:
            told.append(f"{_count(replaced)} replaced: from here on the new ones are measured.")
        if gone:
            told.append(f"{_count(gone)} taken away or changed in shape: from here on they are not measured.")
        added, self._added = [name for name in new if name not in self._added], new
        if added:
            told.append(f"{_count(added)} new since the probe was attached: not measured. Attach again to measure all.")
        return told

    def _look_up(self) -> None:
        """Keep every place that holds a module or a parameter; to compare them takes microseconds, to walk does not."""
        modules = list(self._model.modules())
        self._held = [(m._modules, key, child) for m in modules for key, child in m._modules.items()]
        self._held += [(m._parameters, key, p) for m in modules for key, p in m._parameters.items()]  # type: ignore[misc]


def outside(names: Iterable[str]) -> list[str]:
    """Return, in a sentence, that parameters of these names are moved by no known optimizer."""
    found = list(names)
    if not found:
        return []
    return [
        f"{_count(found)} in none of the optimizers given to attach, though gradients are required: how far they move is "
        "not measured."
    ]


def _why_not(parameter: Tensor) -> str | None:
    """Return of what kind a parameter is whose numbers do not tell its size; None where they do."""
    if parameter.is_meta:
        return "the meta device"
    if parameter.layout is not torch.strided:
        return str(parameter.layout).removeprefix("torch.")
    if type(parameter) not in (nn.Parameter, Tensor) and not _is_readable(parameter):
        return type(parameter).__name__
    # Of quantised weights the scales stand elsewhere: the numbers alone are in no unit.
    if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
        return str(parameter.dtype).removeprefix("torch.")
    return None


def _is_readable(parameter: Tensor) -> bool:
    """Return whether a tensor of another library's kind gives its numbers; one spread over ranks is taken to."""
    try:
        return hasattr(parameter, "device_mesh") or parameter.detach().reshape(-1).to(torch.float32).numel() >= 0
    except Exception:  # noqa: BLE001 - whatever it raises, it does not
        return False


def _left_out(named: Mapping[str, Tensor]) -> list[str]:
    by_kind: dict[str, list[str]] = {}
    for name, parameter in named.items():
        kind = _why_not(parameter)
        if kind is not None:
            by_kind.setdefault(kind, []).append(name)
    return [f"{_count(names)} of {kind}: not measured." for kind, names in by_kind.items()]


def _count(names: list[str]) -> str:
    shown = ", ".join(repr(name)[:100] for name in names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
    return f"1 parameter ({shown}) is" if len(names) == 1 else f"{len(names)} parameters ({shown}) are"
