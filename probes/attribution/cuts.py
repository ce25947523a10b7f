"""Check a decomposition of the output against captum: the total at a cut through the stream is the same at every depth.

All that the loss knows of the batch passes each state, so that completeness forces one total for every cut: it checks a ledger,
and ranks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from rheoscope.probes.anatomy import Point, Stack
from rheoscope.probes.interventions import changed
from torch import Tensor, nn

from .cost import Meter

N_POINTS = 16
Cut = tuple[int, Point]  # depth of a state, and where it is seen


def cuts_of(stack: Stack, most: int) -> list[Cut]:
    """Return at most so many states, evenly spread over the depth, that all that follows reads where they are seen.

    A module's output is such a place; an input, which that module alone reads, only behind the last branch. State 0, where a
    baseline begins, is none of them.
    """
    points = [(branch.depth, branch.whole("state")) for branch in stack.branches]
    found = [(k, at) for k, at in points if at is not None and (at.side == "output" or k == len(points))]
    # From below: what is cut further up is closer to the last state, at which the ledger itself is made.
    places = sorted({round(index * (len(found) - 1) / most) for index in range(most)}) if found else []
    return [found[place] for place in places]


def cut_totals(
    model: nn.Module,
    cuts: Sequence[Cut],
    loss: Callable[[bool], Tensor],
    meter: Meter,
    device: torch.device,
    seconds: float,
) -> dict[int, float]:
    """Return by depth the total of captum's LayerIntegratedGradients at each cut, of the first and as many as the time allows.

    The state is led through a layer of its own, which does nothing: captum takes no outputs apart that hold more than tensors,
    and none of a layer that runs twice.

    Args:
        model: the model.
        cuts: depth and point.
        loss: runs the model on the batch, or, given False, on the baseline.
        meter: expects ``N_POINTS + 2`` passes a cut.
        device: of the model.
        seconds: what the ledger and its cuts together may take.
    """
    found: dict[int, float] = {}
    for depth, point in cuts:
        if not found or meter.seconds + (N_POINTS + 2) * meter.slowest <= seconds:
            found[depth] = _total(model, point, loss, meter, device)
        else:
            meter.expect(-N_POINTS - 2)
    return found


def _total(model: nn.Module, point: Point, loss: Callable[[bool], Tensor], meter: Meter, device: torch.device) -> float:
    from captum.attr import LayerIntegratedGradients

    layer = _Passage()

    def run(is_batch: bool) -> Tensor:
        with changed(model, point, layer):
            return loss(is_batch).reshape(1)

    with torch.no_grad():
        run(is_batch=True)
    captum = LayerIntegratedGradients(lambda is_batch: meter.run(lambda: run(bool(is_batch[0] > 0))), layer)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    with torch.enable_grad():
        # As many rows at a time as the state has: one point of the integral a pass.
        values = captum.attribute(one, zero, n_steps=N_POINTS, internal_batch_size=layer.n_rows)
    return float(values.detach().double().sum())


class _Passage(nn.Module):
    """Hands its input on."""

    n_rows = 1

    def forward(self, state: Tensor) -> Tensor:
        """Return the state, and remember how many rows it has."""
        self.n_rows = state.shape[0]
        return state
