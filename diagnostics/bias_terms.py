"""Follow the biases through training: which move steadily one way, on which the tokens agree, and which do nothing."""

from __future__ import annotations

import pandas as pd

from .coherence import bias_coherence
from .finding import Evidence, Finding
from .frames import largest, records
from .steadiness import order
from .tables import Tables
from .thresholds import (
    BIAS_DRIFT,
    BIAS_DRIFT_COSINE,
    BIAS_FLOOR,
    COHERENCE_NOTED,
    FORECAST_LEAST_POINTS,
    FORECAST_ORDERED,
    NO_GRADIENT,
)


def bias_drift(tables: Tables) -> list[Finding]:
    """Remark on biases that grow through the last half of a run without turning; from 0 all of them do at first."""
    rows = tables.parameters
    rows = rows[(rows["block"] >= 0) & (rows["role"] == "bias") & rows["weight_rms"].notna()].sort_values("step")
    matrices = {p.bias: p.weight for branch in tables.anatomy.branches for p in branch.projections if p.bias}
    last = tables.parameters[tables.parameters["step"] == tables.parameters["step"].max()]
    weights = last.set_index("name")["weight_rms"].to_dict() if len(rows) else {}
    drifting, n = [], 0
    for name, group in rows.groupby("name", sort=False):
        grown = _growth(group)
        n += 1
        if grown > BIAS_DRIFT:
            size, matrix = float(group["weight_rms"].iloc[-1]), weights.get(matrices.get(str(name), ""))
            drifting.append((grown, str(name), size, size / matrix if matrix else None, group))
    if not drifting:
        return []
    grown, name, size, ratio, group = max(drifting, key=lambda one: one[0])
    beside = f", {ratio:.2g} of its weight's" if ratio is not None else ""
    return [
        Finding(
            code="bias-drift",
            severity="info",
            confidence=0.8,
            block=int(group["block"].iloc[0]),
            component=str(group["branch"].iloc[0]),
            module_path=name,
            step=int(group["step"].iloc[-1]),
            sentence=f"{len(drifting)} of {n} biases still grow one way through the last half of the run; {name} most, "
            f"{grown:.2g}-fold to an RMS of {size:.3g}{beside}.",
            evidence=Evidence(
                "growth of the bias RMS over the last half", grown, 1.0, "the run's own first half", BIAS_DRIFT
            ),
            remedy="None needed while its share of the branch's output stays small (see bias-share); decay or drop it otherwise.",
            reference="Chowdhery et al. 2022 (PaLM), section 2: no biases, for stability.",
        )
    ]


def _growth(rows: pd.DataFrame) -> float:
    """Return by how much a bias grew over the last half of the run, 0 where it turned, fell or is nothing."""
    steps, values = rows["step"].to_numpy(float), rows["weight_rms"].to_numpy(float)
    recent = steps >= (steps[0] + steps[-1]) / 2
    late = values[recent]
    if len(late) < FORECAST_LEAST_POINTS or not late[0] > BIAS_FLOOR:
        return 0.0
    if not float(rows["direction_cosine"].astype(float)[recent].median()) > BIAS_DRIFT_COSINE:
        return 0.0
    return float(late[-1] / late[0]) if order(late) > FORECAST_ORDERED else 0.0


def bias_gradients(tables: Tables) -> list[Finding]:
    """Remark on the bias on whose gradient the tokens agree most: it grows with the number of tokens, a weight's hardly."""
    rows = bias_coherence(tables).dropna(subset=["coherence"])
    if not len(rows):
        return []
    step = int(rows["step"].max())
    row = largest(rows[rows["step"] == step], "coherence")
    value, n = float(row["coherence"]), float(row["n_tokens"])
    if value < COHERENCE_NOTED:
        return []
    return [
        Finding(
            code="bias-gradient-coherence",
            severity="info",
            confidence=0.9,
            block=int(row["block"]),
            component=str(row["branch"]),
            module_path="",
            step=step,
            sentence=f"The tokens agree on the bias of the {row['branch']} branch of block {int(row['block'])}: its "
            f"gradient's energy is {value:.3g} times what {n:,.0f} tokens of random directions would give (step {step:,}; "
            f"mean cosine {row['cosine']:.2g}).",
            evidence=Evidence("|sum g|^2 / sum |g|^2 over tokens", value, 1.0, "random directions", COHERENCE_NOTED),
            remedy="None needed. Such a bias learns what all tokens share, such as how common each is.",
        )
    ]


def redundant_biases(tables: Tables) -> list[Finding]:
    """Remark on biases that change nothing: of keys where softmax takes them away, and the mean of one before a LayerNorm."""
    found = []
    idle = without_gradient(tables)
    if idle:
        names = sorted(idle)
        shown = ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
        found.append(
            _redundant(
                tables,
                "attention",
                f"{len(names)} biases in attention branches receive no gradient beyond rounding, by which Adam would move "
                f"them at random: {shown}.",
                Evidence(
                    "bias gradient / the branch's largest", max(idle.values()), 0.0, "softmax ignores what is the "
                    "same for all keys",
                    NO_GRADIENT,
                ),
                "Drop the bias of the keys: without rotary positions or QK-norm it changes nothing.",
            )
        )  # fmt: skip
    normed = [
        b
        for b in tables.anatomy.branches
        if b.output_bias and b.output_norms and "output" in b.direct_norms and b.norm_kind == "layernorm"
    ]
    if normed:
        found.append(
            _redundant(
                tables,
                "biases",
                f"{len(normed)} output biases stand right before a LayerNorm, which takes their mean away: one direction of "
                "each does nothing.",
                Evidence(
                    "output biases before a LayerNorm", float(len(normed)), None, "a LayerNorm is blind to the mean"
                ),
                "None needed.",
            )
        )
    return found


def without_gradient(tables: Tables) -> dict[str, float]:
    """Return the biases of attention branches whose gradient is rounding alone at every sampled step, with its relative size."""
    rows = tables.parameters
    rows = rows[
        (rows["block"] >= 0) & rows["branch"].isin(["attention", "cross_attention"]) & (rows["gradient_rms"] > 0)
    ]
    top = rows.groupby(["step", "stack", "block", "branch"])["gradient_rms"].transform("max")
    biases = rows.assign(relative=rows["gradient_rms"] / top)
    biases = biases[biases["role"] == "bias"]
    largest_of = biases.groupby("name")["relative"].max()
    return {
        str(row["name"]): float(row["relative"]) for row in records(largest_of[largest_of < NO_GRADIENT].reset_index())
    }


def _redundant(tables: Tables, component: str, sentence: str, evidence: Evidence, remedy: str) -> Finding:
    return Finding(
        code="redundant-bias",
        severity="info",
        confidence=0.9,
        block=None,
        component=component,
        module_path="",
        step=int(tables.parameters["step"].max()) if len(tables.parameters) else 0,
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
        reference="softmax(z + c) = softmax(z); LayerNorm(x + c) = LayerNorm(x).",
    )
