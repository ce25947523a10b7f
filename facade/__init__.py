"""Show how signal and gradient flow through any PyTorch transformer.

    measure -> keep -> judge -> show

``discover`` finds the residual stream, ``attach`` records a training run, ``examine`` checks a model once; both give a
``Recording``. ``record``, ``attach_trainer``, ``RheoscopeCallback`` and ``RheoscopeTracker`` record loops that others wrote.
``diagnose`` judges it, ``compare`` sets several side by side, ``what_if`` sets a model beside itself with a design choice
changed, ``write_report`` writes one HTML file. ``attribute_update``, ``usefulness``, ``output_ledger`` and ``gradient_shares``
say which part is responsible. ``assert_stable`` fails a test where a model is ill, ``watch`` tells of findings while a run
trains. Names load when they are used, so that reading a recording never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheoscope.diagnostics.comparison import Comparison, compare
    from rheoscope.diagnostics.diagnosis import Diagnosis, diagnose
    from rheoscope.diagnostics.finding import Finding
    from rheoscope.lab.coordinates import coordinate_check
    from rheoscope.lab.scale_up import scale_up
    from rheoscope.lab.what_if import what_if
    from rheoscope.probes.anatomy import Anatomy
    from rheoscope.probes.attribution.blame import attribute_update
    from rheoscope.probes.attribution.knock_out import usefulness
    from rheoscope.probes.attribution.ledger import output_ledger
    from rheoscope.probes.attribution.result import Attribution
    from rheoscope.probes.attribution.shares import gradient_shares
    from rheoscope.probes.check_up import examine
    from rheoscope.probes.discovery.dissect import discover
    from rheoscope.probes.errors import RheoscopeError
    from rheoscope.probes.integrations.accelerate import RheoscopeTracker
    from rheoscope.probes.integrations.hf_trainer import attach_trainer
    from rheoscope.probes.integrations.lightning import RheoscopeCallback
    from rheoscope.probes.integrations.record import record
    from rheoscope.probes.recorder import Cycle, Probe, attach
    from rheoscope.probes.recording import Recording
    from rheoscope.probes.spikes.bisection import Bisection, bisect
    from rheoscope.reports.report import write_report
    from rheoscope.stability import assert_stable
    from rheoscope.watching import watch

    from .sinks import to_mlflow, to_tensorboard, to_wandb

__all__ = [
    "Anatomy",
    "Attribution",
    "Bisection",
    "Comparison",
    "Cycle",
    "Diagnosis",
    "Finding",
    "Probe",
    "Recording",
    "RheoscopeCallback",
    "RheoscopeError",
    "RheoscopeTracker",
    "assert_stable",
    "attach",
    "attach_trainer",
    "attribute_update",
    "bisect",
    "compare",
    "coordinate_check",
    "diagnose",
    "discover",
    "examine",
    "gradient_shares",
    "output_ledger",
    "record",
    "scale_up",
    "to_mlflow",
    "to_tensorboard",
    "to_wandb",
    "usefulness",
    "watch",
    "what_if",
    "write_report",
]

_HOMES = {
    "Anatomy": "probes.anatomy",
    "Attribution": "probes.attribution.result",
    "Bisection": "probes.spikes.bisection",
    "Comparison": "diagnostics.comparison",
    "Cycle": "probes.recorder",
    "Diagnosis": "diagnostics.diagnosis",
    "Finding": "diagnostics.finding",
    "Probe": "probes.recorder",
    "Recording": "probes.recording",
    "RheoscopeCallback": "probes.integrations.lightning",
    "RheoscopeError": "probes.errors",
    "RheoscopeTracker": "probes.integrations.accelerate",
    "assert_stable": "stability",
    "attach": "probes.recorder",
    "attach_trainer": "probes.integrations.hf_trainer",
    "attribute_update": "probes.attribution.blame",
    "bisect": "probes.spikes.bisection",
    "compare": "diagnostics.comparison",
    "coordinate_check": "lab.coordinates",
    "diagnose": "diagnostics.diagnosis",
    "discover": "probes.discovery.dissect",
    "examine": "probes.check_up",
    "gradient_shares": "probes.attribution.shares",
    "output_ledger": "probes.attribution.ledger",
    "record": "probes.integrations.record",
    "scale_up": "lab.scale_up",
    "to_mlflow": "sinks",
    "to_tensorboard": "sinks",
    "to_wandb": "sinks",
    "usefulness": "probes.attribution.knock_out",
    "watch": "watching",
    "what_if": "lab.what_if",
    "write_report": "reports.report",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"rheoscope.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
