"""Attribute what a check-up examined, and keep it in its recording."""

from __future__ import annotations

from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from torch import nn

from .cost import OnProgress


def attributed(
    recording: Recording, model: nn.Module, batch: Batch, loss_fn: LossFunction | None, on_progress: OnProgress | None
) -> Recording:
    """Return the recording with usefulness, ledger and shares of gradients; what cannot be attributed is said."""
    from .knock_out import usefulness
    from .ledger import output_ledger
    from .shares import gradient_shares

    hidden: list[str] = []
    for ask in (usefulness, output_ledger, gradient_shares):
        try:
            found = ask(model, batch, loss_fn=loss_fn, anatomy=recording.anatomy, on_progress=on_progress)
        except ProbeError as error:
            hidden.append(f"Not attributed ({ask.__name__.replace('_', ' ')}): {error}")
            continue
        recording = found.into(recording)
        if not found.is_ranked:
            hidden += [found.sentences[0] if found.method != "ledger" else found.sentences[1]]
    recording.manifest["not_measured"] = [*recording.manifest.get("not_measured", ()), *hidden]
    return recording
