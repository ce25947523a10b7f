"""Diagnose branches that do not give the same twice, though the model is in evaluation mode."""

from __future__ import annotations

from .finding import Evidence, Finding
from .frames import records
from .tables import Tables


def repeatability(tables: Tables) -> list[Finding]:
    """Report a branch that writes something else when it is asked again from the same state."""
    rows = tables.identities
    rows = rows[(rows["check"] == "repeatability") & rows["observed"].notna()]
    law = "evaluation is a function of the batch"
    return [
        Finding(
            code="not-repeatable",
            severity="error",
            confidence=1.0,
            block=int(row["block"]),
            component=str(row["branch"]),
            module_path="",
            step=0,
            sentence=f"The {row['branch']} branch of block {int(row['block'])} does not repeat itself: from the same state a "
            f"second forward in evaluation mode writes something {row['observed']:.2g} of its size away.",
            evidence=Evidence("change of the write / write", float(row["observed"]), 0.0, law, row["tolerance"]),
            remedy="Look for dropout that does not ask whether the model trains, or anything else random in this branch.",
        )
        for row in records(rows[rows["observed"] > rows["tolerance"]])
    ]
