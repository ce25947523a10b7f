"""Does a gate in the MLP help at equal parameters? The variants of GLU."""

from __future__ import annotations

from dataclasses import replace

from rheoscope.lab.design_choice import as_large_as, gap, small_for_text, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves

KINDS = {
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "GLU": "glu",
    "ReGLU": "reglu",
    "GEGLU": "geglu",
    "SwiGLU": "swiglu",
}
# Held-out log-perplexity after 65,536 steps.
PUBLISHED = {"ReLU": 1.997, "GELU": 1.983, "SiLU": 1.994, "GLU": 1.982, "ReGLU": 1.953, "GEGLU": 1.942, "SwiGLU": 1.944}
SHAZEER = "Shazeer 2020 (arXiv:2002.05202), table 1 (65,536 steps)"


def carry_out(setting: Setting) -> Result:
    """Train all on text, gated MLPs with two thirds of the hidden units."""
    base = small_for_text(setting, activation="relu")
    designs = {label: as_large_as(base, replace(base, activation=kind)) for label, kind in KINDS.items()}
    frame = trained(designs, setting, task="text")
    best = at_best(frame, "held_out_loss")
    best["hidden units"] = [design.hidden for design in designs.values()]
    best["published"] = [PUBLISHED[label] for label in KINDS]
    sizes = best["n_parameters"]
    claims = (
        Claim(
            "most parameters over fewest",
            over_seeds([float(sizes.max() / sizes.min())]),
            "1: equal parameters",
            SHAZEER,
            within(1.0, 0.01),
        ),
        *(
            gap(frame, label, "ReLU", f"{PUBLISHED[label] - PUBLISHED['ReLU']:.3f}", SHAZEER, by="held_out_loss")
            for label in KINDS
            if label != "ReLU"
        ),
    )
    notes = (
        "The published gains are 1 to 3 per cent of the loss, after runs a hundred times longer: below the spread over seeds "
        "here. This is a table, not a proof.",
    )
    return Result(claims, best, loss_curves(frame), notes=notes)


EXPERIMENT = Experiment(
    "glu",
    "Does a gate in the MLP help at equal parameters?",
    "Shazeer 2020",
    (15.0, 1.0),
    carry_out,
)
