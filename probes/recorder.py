"""Attach a probe to a model in training: refuse what cannot be probed, open the recording, put on the hooks."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from .anatomy import Anatomy
from .errors import ProbeError
from .hooked import Hooked
from .manifest import manifest
from .probe import Probe
from .sites import layout
from .writer import Writer


def attach(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    *,
    every: int = 10,
    folder: str | Path | None = None,
    anatomy: Anatomy | None = None,
    resume: bool = False,
    strict: bool = False,
    label: str = "",
) -> Probe:
    """Put probes on ``model``: they find the residual stream on the first training forward and measure from there on.

    Training is left alone: the same weights bit for bit, no synchronisation in hooks, no exception that stops the run.

    Args:
        model: the model that is called in the training loop; forwards in eval mode are not recorded.
        optimizer: the optimizer that steps it; without one, updates are not measured.
        every: a step in so many is sampled in full; the loss and learning rate are kept of all.
        folder: where the recording is written; None for ``runs/<date and time>``.
        anatomy: what ``discover`` found, to skip discovery on the first forward.
        resume: continue the recording in ``folder``.
        strict: raise instead of logging when the probe itself fails.
        label: a name for the run.

    Returns:
        The probe: a context manager with ``step`` and ``recording``.

    Raises:
        ProbeError: ``every`` is not a positive number of steps, the model is replicated by nn.DataParallel, the
            optimizer takes no hooks, or ``anatomy`` is another model's.
        RecordingExistsError: the folder holds a recording and ``resume`` is false.
        RecordingError: the folder cannot be written.
    """
    _expect(model, optimizer, every, anatomy)
    if folder is None:
        folder = Path("runs") / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    writer = Writer(Path(folder), manifest(model, every=every, label=label), resume=resume, strict=strict)
    return Probe(model, optimizer, writer, every=every, anatomy=anatomy, strict=strict)


def _expect(model: object, optimizer: object, every: object, anatomy: Anatomy | None) -> None:
    """Refuse what cannot be probed before a folder is made."""
    if not isinstance(model, nn.Module) or isinstance(model, nn.DataParallel):
        raise ProbeError(
            f"Expected a torch.nn.Module that runs as itself, got {type(model).__name__}. nn.DataParallel copies its "
            "modules at every forward: use DistributedDataParallel, or attach to one device's model."
        )
    if optimizer is not None and not hasattr(optimizer, "register_step_pre_hook"):
        raise ProbeError(
            f"Expected a torch.optim.Optimizer or none, got {type(optimizer).__name__}. Pass the one inside it, or None."
        )
    if not isinstance(every, int) or every < 1:
        raise ProbeError(f"Expected every >= 1 (a step in so many is sampled), got {every!r}. Pass a positive number.")
    if anatomy is not None:
        Hooked(model, layout(anatomy).points, lambda *_: None).remove()


__all__ = ["Probe", "attach"]
