"""Check-ups of the reference transformer, as experiments at init need them."""

from __future__ import annotations

import torch
from rheoscope.probes.check_up import examine
from rheoscope.probes.discovery import discover
from rheoscope.probes.losses import default_loss
from rheoscope.probes.recording import Recording
from rheoscope.probes.skip_path import skip_path
from torch import Tensor, nn
from torch.nn import functional

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


def transmission_at_init(architecture: Architecture, seed: int, *, batch_size: int = 4) -> float:
    """Return the skip transmission of a freshly drawn model, from the last state to state 1, on a batch of uniform tokens."""
    with one_thread():
        model = ReferenceTransformer(architecture, seed=seed)
        batch = next(task("uniform")(architecture.vocabulary, batch_size, architecture.context, seed))
        given = (batch[:, :-1], batch[:, 1:])
        rows = skip_path(model, given, discover(model, given), lambda output: default_loss(output, given))
    return next(float(row["observed"]) for row in rows if row["depth"] == 1)


class Kept(nn.Module):
    """A projection in whose place it stands: what it read and gave is kept, and the gradient of what it gave."""

    read: Tensor
    given: Tensor

    def __init__(self, projection: nn.Module) -> None:
        """Take the place of ``projection``."""
        super().__init__()
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        """Return what the projection gives."""
        self.read, self.given = x, self.projection(x)
        if self.given.requires_grad:
            self.given.retain_grad()
        return self.given


def kept(model: ReferenceTransformer, name: str) -> list[Kept]:
    """Put a ``Kept`` in place of every block's projection ``name``, such as mlp.up; return them by block."""
    found = []
    for block in model.blocks:
        parent, _, last = name.rpartition(".")
        found.append(Kept(block.get_submodule(name)))
        setattr(block.get_submodule(parent), last, found[-1])
    return found


def stream(architecture: Architecture, seed: int, *, batch_size: int = 4) -> tuple[list[float], list[float]]:
    """Return the RMS of a fresh model's stream before the first block and behind every one, and of the loss's gradient there.

    Args:
        architecture: of a decoder without added positions.
        seed: of the weights, and of the batch of uniform tokens.
        batch_size: sequences.
    """
    with one_thread():
        model = ReferenceTransformer(architecture, seed=seed)
        batch = next(task("uniform")(architecture.vocabulary, batch_size, architecture.context, seed))
        states = [model.token_embedding(batch[:, :-1])]
        for block in model.blocks:
            states.append(block(states[-1]))
        logits = model.head(model.final_norm(states[-1]))
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        gradients = torch.autograd.grad(loss, states)
    return [rms(each) for each in states], [rms(each) for each in gradients]


def rms(x: Tensor) -> float:
    """Return the root of the mean square of all elements."""
    return float(x.detach().square().mean().sqrt())
