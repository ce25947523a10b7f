"""Say how often gradients were clipped, by how much, and whether what is clipped grows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .steadiness import order
from .tables import Tables
from .thresholds import CLIP_ALWAYS, CLIP_GROWS, CLIP_JUDGED_AFTER, FORECAST_MOST_POINTS, FORECAST_ORDERED


def clipping(tables: Tables) -> list[Finding]:
    """Tell the share of steps that were clipped; warn where clipping hides a gradient norm that grows and grows.

    Clipping at every step is common early, and under Adam, which divides by the gradient's own size, nearly free. What it hides
    is a norm that keeps growing in a run whose every step is clipped.
    """
    rows = tables.recording.table("steps", columns=["step", "unclipped_gradient_norm", "clip_coefficient"])
    rows = rows.dropna(subset=["unclipped_gradient_norm", "clip_coefficient"]).sort_values("step")
    rows = rows[np.isfinite(rows["unclipped_gradient_norm"].astype(float))]
    if not len(rows):
        return []
    clipped = rows["clip_coefficient"].to_numpy(float) < 1
    share = float(clipped.mean())
    first, last = int(rows["step"].iloc[0]), int(rows["step"].iloc[-1])
    recent = rows[rows["step"] >= (first + last) / 2]
    always = float((recent["clip_coefficient"] < 1).mean())
    grown = _growth(recent["unclipped_gradient_norm"]) if len(rows) > CLIP_JUDGED_AFTER else 0.0
    is_ill = always > CLIP_ALWAYS and grown > CLIP_GROWS
    usual = float(rows.loc[clipped, "clip_coefficient"].median()) if clipped.any() else 1.0
    return [
        Finding(
            code="clipping",
            severity="warning" if is_ill else "info",
            confidence=0.7 if is_ill else 1.0,
            block=None,
            component="gradient",
            module_path="",
            step=last,
            sentence=f"{share:.0%} of {len(rows):,} steps were clipped"
            + (f", by {usual:.2g} at the median one" if clipped.any() else "")
            + (
                f"; every step of the last half was, and the norm before clipping grew {grown:.2g}-fold in it: the gradient "
                "grows, and clipping hides it."
                if is_ill
                else "; in the last half every step was: the limit, not the gradient, sets the size of the gradient."
                if always > CLIP_ALWAYS
                else "."
            ),
            evidence=Evidence(
                "growth of the norm before clipping over the last half",
                grown,
                1.0,
                "the run's own earlier steps",
                CLIP_GROWS,
            )
            if is_ill
            else Evidence("share of steps that were clipped", share, None, "no limit: common early in a run"),
            remedy="Find where the gradient grows with depth and step; lower the learning rate."
            if is_ill
            else "None needed.",
            reference="Pascanu et al. 2013, section 3.2.",
        )
    ]


def _growth(norms: pd.Series) -> float:
    """Return the last over the first of a series' medians of equal stretches, 0 where these do not rise steadily."""
    parts = [
        part
        for part in np.array_split(norms.to_numpy(float), min(FORECAST_MOST_POINTS // 4, len(norms) // 4))
        if len(part)
    ]
    levels = np.array([np.median(part) for part in parts])
    if len(levels) < 4 or not levels[0] > 0:
        return 0.0
    return float(levels[-1] / levels[0]) if order(levels) > FORECAST_ORDERED else 0.0
