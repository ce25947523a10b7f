"""Take tokens out one by one, and see what the norm of a block's gradient becomes: captum's FeatureAblation of a gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.interventions import changed
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.together import seen_in
from torch import Tensor, nn

from .baselines import mean_state
from .conditions import loss_of
from .cost import Meter
from .examples import examples


def knocked_tokens(
    model: nn.Module,
    batch: Batch,
    anatomy: Anatomy,
    loss_fn: LossFunction | None,
    names: Sequence[str],
    sample: int,
    meter: Meter,
) -> Tensor:
    """Return by how much the norm of the gradient of weights falls without each token of one sample, shape (positions).

    One gate a token: its first state, or the mean over the sample's tokens. Call it inside ``at_rest(model)``.

    Raises:
        ProbeError: the first state is not seen, or is no tensor (sample, position, width).
    """
    from captum.attr import FeatureAblation

    alone = examples(model, batch)
    one: Batch = alone[sample] if alone else batch
    start = anatomy.stacks[0].start
    shown = {} if start is None else seen_in(model, one, [start])
    if start is None or start not in shown or shown[start].dim() != 3:
        raise ProbeError(
            "Expected a first state of shape (sample, position, width), to take tokens out of it, got none that a hook sees. "
            "Leave out token_knock_out."
        )
    size = shown[start].shape[1]
    named = dict(model.named_parameters())
    weights = [named[name] for name in names]
    of = loss_of(one, loss_fn)
    meter.expect(size + 1)

    def norm(gates: Tensor) -> Tensor:
        def mixed(state: Tensor) -> Tensor:
            mean = mean_state(state)
            return mean + gates[0][None, :, None] * (state - mean)

        def run() -> Tensor:
            # captum evaluates without gradients; what is evaluated is one.
            with torch.enable_grad(), changed(model, start, mixed):
                loss = of(call(model, one))
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            return torch.stack([g.square().sum() for g in found if g is not None]).sum().sqrt().reshape(1)

        return meter.run(run)

    falls: Tensor = FeatureAblation(norm).attribute(torch.ones(1, size, device=shown[start].device))[0]
    return falls.detach().double().cpu()
