"""Show what is forecast: at which step a quantity that grows reaches what it must not reach."""

from __future__ import annotations

import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.forecast import QUANTITIES
from rheoscope.diagnostics.tables import Tables
from rheoscope.diagnostics.thresholds import FORECAST_LEAST_POINTS
from rheoscope.reports.theme import number, plain

from .chart import Chart


def outlook(tables: Tables, diagnosis: Diagnosis) -> Chart:
    """List the quantities that, as was judged, reach their limit if they go on as they did."""
    key, title = "forecasts", "Where the run is heading"
    watched = ", ".join(quantity.name.removeprefix("The ") for quantity in QUANTITIES)
    reading = (
        f"Watched: {watched[0].lower()}{watched[1:]}. Of each the place that reaches its limit first, where the growth over the "
        "last sampled steps is steady enough to tell; how far to trust this is measured in docs/forecasts.md."
    )
    n = len(tables.sampled_steps)
    if n < FORECAST_LEAST_POINTS:
        why = f"A forecast needs {FORECAST_LEAST_POINTS} sampled steps; this recording has {n}."
        return Chart(key, title, reading, absent=why)
    codes = {quantity.code for quantity in QUANTITIES}
    made = [finding for finding in diagnosis if finding.code in codes]
    found = sorted(made, key=lambda finding: finding.evidence.observed or 0.0)
    if not found:
        return Chart(key, title, reading, absent="No watched quantity grows steadily towards its limit.")
    first = found[0]
    title = f"First to reach its limit, if it goes on: {plain(first.component)}, at step {number(first.evidence.observed, 4)}"
    table = pd.DataFrame(
        {
            "where": [plain(finding.component) for finding in found],
            "step at which the limit is reached": [finding.evidence.observed for finding in found],
            "what is said": [plain(finding.sentence, 400) for finding in found],
            "what to do": [plain(finding.remedy, 300) for finding in found],
        }
    )
    return Chart(key, title, reading, table=table)
