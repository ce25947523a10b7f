"""log Z beyond what 16 bits tell apart."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rheoscope.diagnostics.output_logits import output_logits
from rheoscope.diagnostics.tables import Tables


def run(made: Any, *log_z: float, dtype: str = "bfloat16") -> Tables:
    """Return a run with log Z at its sampled steps."""
    recording = made(steps=tuple(range(len(log_z))))
    recording.manifest = {"model": {"dtype": dtype}}
    recording.tables["logits"] = pd.DataFrame(
        {"step": step, "micro_step": 0, "stack": 0, "log_z": value, "logit_max": 1.0}
        for step, value in enumerate(log_z)
    )
    return Tables(recording.recording())


def test_log_z_of_a_fresh_model_is_not_mentioned(made: Any) -> None:
    assert output_logits(run(made, 5.5, 6.0)) == []


def test_a_drift_beyond_the_limit_is_a_warning_in_16_bits_and_a_remark_in_32(made: Any) -> None:
    (short,), (long,) = output_logits(run(made, 5.5, -80.0)), output_logits(run(made, 5.5, -80.0, dtype="float32"))

    assert (short.code, short.severity, long.severity) == ("log-z", "warning", "info")


def test_logits_that_were_as_large_from_the_start_are_a_choice(made: Any) -> None:
    (finding,) = output_logits(run(made, 70.0, 80.0))

    assert finding.severity == "info"
