"""Run a step once more that lost its numbers: the weights, the batch and the random state that it began with are kept.

Costs the memory of the weights and of the batches of a few steps, and one copy of the weights a step: only where it is asked for.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .anatomy import Anatomy
from .batches import Arguments, call, tensors
from .door import Door
from .errors import BatchError
from .losses import default_loss
from .origin import Origin, first_nonfinite, origin_row, sentence
from .untouched import untouched

MOST_STEPS = 3  # a loss is looked at when it has arrived on the host: the step after, or the one after that
MOST_FORWARDS = 8  # of one step

UNKNOWN = "Step {} was run again from its own weights, batch and random state, and was finite: not reproduced."
LOSS = "The forward of step {} is finite; its loss is made outside the model, and how it is made is not known."


@dataclass
class _Kept:
    """What one step began with."""

    step: int
    weights: list[Tensor]
    forwards: list[tuple[Arguments, dict[str, Any]]] = field(default_factory=list)


class Replay:
    """Keeps what the last steps began with, and finds in one of them the first operation whose result is not finite."""

    def __init__(self, model: nn.Module) -> None:
        """Keep nothing yet."""
        self._model = model
        self._kept: deque[_Kept] = deque(maxlen=MOST_STEPS)

    def keep(self, step: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keep what a forward of ``step`` begins with."""
        if not self._kept or self._kept[-1].step != step:
            held = self._held()
            # The copies of the step that is forgotten are written over: no memory is asked for.
            weights = self._kept[0].weights if len(self._kept) == MOST_STEPS else [torch.empty_like(p) for p in held]
            with torch.no_grad():
                for copy, value in zip(weights, held, strict=True):
                    copy.copy_(value)
            self._kept.append(_Kept(step, weights))
        kept = self._kept[-1]
        if len(kept.forwards) < MOST_FORWARDS:
            batch = Arguments(*tree_map(copied, (args, dict(kwargs))))
            kept.forwards.append((batch, state_now()))

    def begun(self, step: int) -> tuple[dict[str, Tensor], list[Arguments]] | None:
        """Return the weights and batches that ``step`` began with; None where they are not kept any longer."""
        kept = next((each for each in self._kept if each.step == step), None)
        if kept is None or not kept.forwards:
            return None
        names = [name for name, _ in self._model.named_parameters()]
        return dict(zip(names, kept.weights, strict=False)), [batch for batch, _ in kept.forwards]

    def tell(self, step: int, anatomy: Anatomy, writer: Any, door: Door) -> None:
        """Write what running ``step`` again shows: a row of the identities table, and an event of the step."""
        door.is_shut = True
        try:
            origin, told = self.explain(step)
        finally:
            door.is_shut = False
        if origin is not None:
            row = origin_row(origin, anatomy)
            writer.columns("identities", {name: [value] for name, value in row.items()})
            told = sentence(origin)
        writer.event(step, "nonfinite_origin", told)

    def explain(self, step: int) -> tuple[Origin | None, str]:
        """Run ``step`` again, and return its first value that is not finite; else why there is none, in a sentence."""
        kept = next((each for each in self._kept if each.step == step), None)
        if kept is None or not kept.forwards:
            return None, f"Step {step} is not kept any longer: it could not be run again."
        now = [value.detach().clone() for value in self._held()]
        is_whole = True
        with untouched(self._model):
            try:
                self._put(kept.weights)
                for batch, state in kept.forwards:
                    for parameter in self._model.parameters():
                        parameter.grad = None

                    def run(batch: Arguments = batch, state: dict[str, Any] = state) -> Tensor | None:
                        nonlocal is_whole
                        with torch.enable_grad(), as_it_was(state):
                            output = call(self._model, batch)
                            try:
                                loss = default_loss(output, batch)
                            except BatchError:
                                is_whole = False
                                return next((t for t in _floats(output) if not bool(torch.isfinite(t).all())), None)
                            loss.backward()  # type: ignore[no-untyped-call]
                            return loss

                    found = first_nonfinite(self._model, run)
                    if found is not None:
                        return found, ""
            finally:
                self._put(now)
        return None, (UNKNOWN if is_whole else LOSS).format(step)

    def _held(self) -> list[Tensor]:
        return [*self._model.parameters(), *self._model.buffers()]

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._held(), values, strict=True):
                tensor.copy_(value)


def copied(value: Any) -> Any:
    """Return a tensor's copy, and anything else as it is."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _floats(output: Any) -> Iterator[Tensor]:
    return (tensor for _, tensor in tensors(output) if tensor.is_floating_point())


def state_now() -> dict[str, Any]:
    """Return the random state and the precision that a forward begins with."""
    device = torch.accelerator.current_accelerator()
    kinds = ["cpu", *([] if device is None else [device.type])]
    return {
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "autocast": {k: torch.get_autocast_dtype(k) for k in kinds if torch.is_autocast_enabled(k)},
    }


@contextlib.contextmanager
def as_it_was(state: dict[str, Any]) -> Iterator[None]:
    """Run a block with the random state and precision that ``state_now`` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    with contextlib.ExitStack() as stack:
        for kind, dtype in state["autocast"].items():
            stack.enter_context(torch.autocast(kind, dtype))
        yield
