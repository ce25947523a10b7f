"""Say what an output is compared with: a batch of the user's, or the same batch that begins with nothing to tell tokens apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.interventions import changed
from torch import Tensor, nn

MEAN = "the same batch with every token's first state replaced by their mean"


@contextmanager
def without_content(model: nn.Module, anatomy: Anatomy) -> Iterator[None]:
    """Run a block in which every stack begins with the mean of its first states, over examples and positions, everywhere."""
    with ExitStack() as stack:
        for each in anatomy.stacks:
            if each.start is not None:
                stack.enter_context(changed(model, each.start, mean_state))
        yield


def mean_state(state: Tensor) -> Tensor:
    """Return the mean over all but the last axis, in the shape of the state."""
    return state.flatten(0, -2).mean(0).expand_as(state).contiguous()
