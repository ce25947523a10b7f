"""Check-ups of the reference transformer, as experiments at init need them."""

from __future__ import annotations

import torch
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording

from .architecture import Architecture
from .tasks import task
from .threads import one_thread
from .transformer import ReferenceTransformer


def at_init(
    architecture: Architecture, seed: int, *, batch_size: int = 4, tokens: str = "uniform", label: str = ""
) -> Recording:
    """Return the check-up of a freshly drawn model on one batch of a task, with that task's next tokens as targets.

    Args:
        architecture: of the model; the batch is as long as its context.
        seed: of the weights and of the batch.
        batch_size: sequences.
        tokens: the task: uniform tokens are what the closed forms assume.
        label: of the recording.
    """
    with one_thread():
        model = ReferenceTransformer(architecture, seed=seed)
        batch = next(task(tokens)(architecture.vocabulary, batch_size, architecture.context, seed))
        torch.manual_seed(seed)
        return examine(model, (batch[:, :-1], batch[:, 1:]), label=label)
