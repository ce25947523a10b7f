"""Assert, in a test suite of the user's, that a model is sound as it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rheoscope.probes.recording import Recording


def assert_stable(
    model: Any,
    batch: Any,
    fail_on: Literal["info", "warning", "error"] = "warning",
    suppress: str | Path | Sequence[Mapping[str, Any]] = (),
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
) -> Recording:
    """Examine ``model`` on ``batch`` and fail where a finding is at or above ``fail_on``; the model is left bit-identical.

    Args:
        model: any PyTorch transformer.
        batch: what its training loop passes: a tensor, a tuple of arguments, or a mapping of keywords.
        fail_on: the lowest severity that fails.
        suppress: known findings: a TOML file, or entries such as
            ``{"code": "gradient-growth", "block": 3, "reason": "known, #12"}``.
        loss_fn: as in ``examine``.
        seed: of the noise in the active checks.

    Returns:
        The recording of the check-up, for a report.

    Raises:
        AssertionError: a finding is left; the message lists code, place, sentence and remedy of each.
        DiagnosisError: a suppression has no reason, or is none.
        BatchError: the model rejects the batch, or no loss can be made of its output.
        DiscoveryError: the model has no residual stream.
    """
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.diagnostics.suppression import gate, read_suppressions, suppressions
    from rheoscope.probes.check_up import examine
    from rheoscope.reports.terminal import gate_text

    known = read_suppressions(suppress) if isinstance(suppress, str | Path) else suppressions(suppress)
    recording = examine(model, batch, loss_fn, seed=seed)
    gated = gate(diagnose(recording), known)
    if gated.fails(fail_on):
        raise AssertionError(f"The model has findings at or above {fail_on!r}.\n{gate_text(gated)}")
    return recording
