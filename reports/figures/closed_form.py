"""Hand the closed forms of a fresh model's stacks to the charts, with the band within which they claim to hold."""

from __future__ import annotations

import pandas as pd
from rheoscope.diagnostics.against_theory import predicted_states
from rheoscope.diagnostics.expected import Prediction, theory_of_recording
from rheoscope.diagnostics.tables import Tables


def closed_forms(tables: Tables, column: str) -> dict[int, pd.DataFrame]:
    """Return, of each stack for which the closed forms hold, depth, observed, expected, ratio and band.

    Args:
        tables: of the recording.
        column: rms of the state, or gradient.
    """
    found = {}
    for stack, frame in predicted_states(tables, column).items():
        prediction = theory_of_recording(tables, stack)
        assert isinstance(prediction, Prediction)
        found[stack] = frame.assign(band=prediction.rms_band if column == "rms" else prediction.gradient_band)
    return found
