"""Find hidden layers caught in the dip of GELU, SiLU or Mish, where these fall as their input grows and hardly slope."""

from __future__ import annotations

from .finding import Evidence, Finding
from .frames import PLACE, groups, joined
from .tables import Tables
from .thresholds import ACTIVATION_DIPS, LEAST_SIBLINGS, TRAPPED


def activation_trap(tables: Tables) -> list[Finding]:
    """Report a hidden layer none of whose values is above the dip's depth in size while their mean lies near its bottom.

    There no unit is on, and the slope is at most a quarter of that of one that is: little gradient leads out. A recording has no
    numbers of single units: a layer of which only some are caught is not told.
    """
    activations = {
        (b.stack, b.depth): b.hidden.activation
        for b in tables.anatomy.branches
        if b.hidden is not None and b.hidden.is_gated is False and b.hidden.activation in ACTIVATION_DIPS
    }
    rows = tables.activations
    rows = rows[(rows["site"] == "hidden") & (rows["direction"] == "forward") & rows["mean"].notna()]
    if not len(rows) or not activations:
        return []
    rows = rows[rows["step"] == rows["step"].max()]
    frame = joined(rows, ["step", *PLACE], {"mean": "mean", "absmax": "max"})
    found = []
    for (stack,), group in groups(frame, "stack"):
        known = group.assign(
            dip=[
                ACTIVATION_DIPS.get(activations.get((stack, int(depth)), ""), float("nan")) for depth in group["depth"]
            ]
        ).dropna(subset=["dip"])
        # Rounding to 16 bits may leave a value a little below the bottom.
        caught = known[(known["absmax"] <= 1.01 * known["dip"]) & (known["mean"] < -TRAPPED * known["dip"])]
        is_alone = len(caught) == 1 and len(known) > LEAST_SIBLINGS
        for row in caught.head(1).to_dict("records"):
            block, name = int(row["block"]), activations[stack, int(row["depth"])]
            found.append(
                Finding(
                    code="activation-trap",
                    severity="warning" if is_alone else "info",
                    confidence=0.8,
                    block=block if is_alone else None,
                    stack=int(stack),
                    component=str(row["branch"]),
                    module_path="",
                    step=int(row["step"]),
                    sentence=f"The hidden layer of block {block}{tables.stack_name(stack)} is caught in the dip of {name}: "
                    f"all its values lie within {row['dip']:.2g} of 0, their mean at {row['mean']:.2g}"
                    + (
                        f"; none of its {len(known) - 1} siblings is."
                        if is_alone
                        else f", as of {len(caught)} of {len(known)} blocks."
                    ),
                    evidence=Evidence(
                        "mean of the hidden values",
                        float(row["mean"]),
                        None,
                        f"the bottom of {name}",
                        -TRAPPED * float(row["dip"]),
                    ),
                    remedy="Look at the bias before the activation, and at a learning rate that pushed it down; raise it, "
                    "or start the block anew.",
                    reference="Hendrycks and Gimpel 2016; Ramachandran et al. 2017: neither function is monotone.",
                )
            )
    return found
