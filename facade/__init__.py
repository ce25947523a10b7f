"""Show how signal and gradient flow through any PyTorch transformer.

    measure -> keep -> judge -> show

``discover`` finds the residual stream, ``attach`` records a training run, ``examine`` checks a model once; both give a
``Recording``. ``diagnose`` judges it, ``compare`` sets several side by side, ``what_if`` sets a model beside itself with a
design choice changed, ``write_report`` writes one HTML file, ``assert_stable`` fails a test where a model is ill. Names load when
they are used, so that reading a recording never imports torch.
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
    from rheoscope.probes.check_up import examine
    from rheoscope.probes.discovery.dissect import discover
    from rheoscope.probes.errors import RheoscopeError
    from rheoscope.probes.recorder import Cycle, Probe, attach
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.report import write_report
    from rheoscope.stability import assert_stable
    from rheoscope.watching import watch

__all__ = [
    "Anatomy",
    "Comparison",
    "Cycle",
    "Diagnosis",
    "Finding",
    "Probe",
    "Recording",
    "RheoscopeError",
    "assert_stable",
    "attach",
    "compare",
    "coordinate_check",
    "diagnose",
    "discover",
    "examine",
    "scale_up",
    "watch",
    "what_if",
    "write_report",
]

_HOMES = {
    "Anatomy": "probes.anatomy",
    "Comparison": "diagnostics.comparison",
    "Cycle": "probes.recorder",
    "Diagnosis": "diagnostics.diagnosis",
    "Finding": "diagnostics.finding",
    "Probe": "probes.recorder",
    "Recording": "probes.recording",
    "RheoscopeError": "probes.errors",
    "assert_stable": "stability",
    "attach": "probes.recorder",
    "compare": "diagnostics.comparison",
    "coordinate_check": "lab.coordinates",
    "diagnose": "diagnostics.diagnosis",
    "discover": "probes.discovery.dissect",
    "examine": "probes.check_up",
    "scale_up": "lab.scale_up",
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
