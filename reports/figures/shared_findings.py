"""List which findings appear in which variant."""

from __future__ import annotations

from rheoscope.diagnostics.shared_findings import findings_by_variant
from rheoscope.reports.compared import Compared
from rheoscope.reports.theme import counted

from .chart import Chart


def by_variant(compared: Compared) -> Chart:
    """List warnings and errors by their kind, with the variants that have them."""
    key, title = "findings-by-variant", "Which findings appear and vanish"
    reading = (
        "One row a kind of warning or error, one column a variant: its severity and the first block it names; – where it does "
        "not appear. Kinds that all variants share stand last: they tell nothing apart."
    )
    table = findings_by_variant(compared.comparison)
    if not len(table):
        return Chart(key, title, reading, absent="No variant has a warning or an error.")
    labels = compared.comparison.labels
    shares = (table[labels] != "").sum(axis=1)
    n_apart, n_all = int((shares < len(labels)).sum()), int((shares == len(labels)).sum())
    title = f"{counted(n_apart, 'kind')} of finding in some variants and not in others, {n_all} in all"
    named = table.assign(finding=table["code"].str.replace("-", " ")).replace("", "–")
    return Chart(key, title, reading, table=named[["finding", *labels]])
