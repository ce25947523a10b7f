"""Does the size of the embeddings matter for training? Small, scaled by the root of the width, and of unit size."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, curve
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best

STD = 0.02
SMALL, SCALED, UNIT = "small", "times sqrt(width)", "unit"
TAKASE = "Takase et al. 2023 (arXiv:2312.16903), section 4: small embeddings make the first gradients large, and spikes likely"


def carry_out(setting: Setting) -> Result:
    """Train the three sizes and look at the gradient before the first step, and at the largest."""
    # Added positions would not be scaled with the tokens, and would be lost beside them.
    base = small(setting, positions="rotary")
    designs = {
        SMALL: replace(base, embedding_std=STD),
        SCALED: replace(base, embedding_std=STD, embedding_scale=math.sqrt(base.width)),
        UNIT: base,
    }
    frame = trained(designs, setting)
    best = at_best(frame)
    at = {label: rows_at_best(frame, label) for label in designs}
    for name, column in (("first gradient norm", "first_gradient_norm"), ("largest", "largest_gradient_norm")):
        best[name] = [str(over_seeds(rows[column])) for rows in at.values()]
    sizes = {label: design.embedding_std * design.embedding_scale for label, design in designs.items()}
    best["element"] = list(sizes.values())
    claims = (
        Claim(
            "norm of the whole gradient before the first step, small over unit embeddings",
            over_seeds(at[SMALL]["first_gradient_norm"] / at[UNIT]["first_gradient_norm"]),
            "above 1",
            TAKASE,
            at_least(1.0),
        ),
        Claim(
            "the largest in training, small over unit embeddings",
            over_seeds(at[SMALL]["largest_gradient_norm"] / at[UNIT]["largest_gradient_norm"]),
            "above 1: spikes",
            TAKASE,
            None,
        ),
        gap(frame, SMALL, UNIT, "no figure for the loss without spikes", TAKASE),
        gap(frame, SCALED, UNIT, "about 0: scaling is one of two cures", TAKASE),
    )
    line = curve(
        "gradient norm before the first step against the size of an embedding's element",
        "measured",
        [(sizes[label], over_seeds(rows["first_gradient_norm"])) for label, rows in at.items()],
    )
    notes = (
        "The whole gradient holds the head's, which the embeddings' size does not touch: that of the first blocks alone grows "
        "more (rheoscope lab takase). Gradients are clipped at 1, which hides the first steps' size from training; the published "
        "spikes are of models a thousand times larger, after thousands of steps.",
    )
    return Result(claims, best, pd.concat([line, loss_curves(frame)], ignore_index=True), notes=notes)


EXPERIMENT = Experiment(
    "embedding-scale",
    "Does the size of the embeddings matter for training, beyond the first gradients?",
    "Takase et al. 2023",
    (5.0, 0.7),
    carry_out,
)
