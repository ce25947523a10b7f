"""Say which findings appear in which of several compared recordings, and which in none but one."""

from __future__ import annotations

import pandas as pd

from .comparison import Comparison

_RANK = {"error": 2, "warning": 1, "info": 0}


def findings_by_variant(comparison: Comparison) -> pd.DataFrame:
    """Return one row a kind of finding that is a warning or an error somewhere: code, then a column a label.

    A cell holds the gravest severity of this code in that recording, and the first block it names; "" where there is none.
    Kinds that all recordings share stand last: they tell nothing apart.
    """
    rows: dict[str, dict[str, str]] = {}
    for label, diagnosis in comparison.diagnoses.items():
        for code in dict.fromkeys(finding.code for finding in diagnosis):
            gravest = max((f for f in diagnosis if f.code == code), key=lambda found: _RANK[found.severity])
            if gravest.severity != "info":
                where = "" if gravest.block is None else f", block {gravest.block}"
                rows.setdefault(code, {})[label] = f"{gravest.severity}{where}"
    ordered = sorted(rows.items(), key=lambda pair: len(pair[1]) == len(comparison.labels))
    found = [{"code": code, **{label: cells.get(label, "") for label in comparison.labels}} for code, cells in ordered]
    return pd.DataFrame(found, columns=["code", *comparison.labels])
