"""How wide should the MLP be? Hidden units over width at equal parameters."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import n_parameters, small_for_text, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, increases, loss_curves

RATIOS, RATIOS_QUICK = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.5, 2.0, 4.0, 8.0)
REFERENCE = 4.0
PUBLISHED = {0.5: "below 1", 1.0: "below 1", 2.0: "below 1", 8.0: "1.8", 16.0: "between 1.8 and 5"}
KAPLAN = "Kaplan et al. 2020 (arXiv:2001.08361), figure 5: loss increase against the best"

NOTES = (
    "Published figures are of models trained to convergence; a few hundred steps reward what learns fast. Blocks have equal "
    "parameters; the embedding and the head, a fourth of so small a model, grow with the width, which favours small ratios.",
)


def carry_out(setting: Setting) -> Result:
    """Train stacks of several ratios whose blocks have as many parameters."""
    base = small_for_text(setting, n_heads=2)  # widths in steps of two
    designs = {f"ratio {ratio:g}": of_ratio(base, ratio) for ratio in (RATIOS_QUICK if setting.is_quick else RATIOS)}
    frame = trained(designs, setting, task="text")
    best = at_best(frame, "held_out_loss")
    best["width"] = [design.width for design in designs.values()]
    best["parameters of blocks"] = sizes = [n_parameters(design, of_blocks=True) for design in designs.values()]
    increase = increases(frame, f"ratio {REFERENCE:g}")
    claims = (
        Claim(
            "most parameters of blocks over fewest", over_seeds([max(sizes) / min(sizes)]), "1", KAPLAN, within(1, 0.1)
        ),
        *(
            Claim(
                f"held-out loss of {label} over that of ratio {REFERENCE:g}, increase in per cent",
                over_seeds(values),
                PUBLISHED[float(label.split()[1])],
                KAPLAN,
                None if float(label.split()[1]) > REFERENCE else at_most(1.0),
            )
            for label, values in increase.items()
        ),
    )
    line = curve(
        "held-out loss increase (%) against hidden units over width",
        "measured",
        [(float(label.split()[1]), over_seeds(values)) for label, values in increase.items()],
    )
    return Result(
        claims, best, pd.concat([line, loss_curves(frame, by="held_out_loss")], ignore_index=True), notes=NOTES
    )


def of_ratio(base: Architecture, ratio: float) -> Architecture:
    """Return a design with ``ratio`` x width hidden units, and the width at which its blocks are as large as the base's."""
    wanted = n_parameters(base, of_blocks=True)

    def at(width: int) -> Architecture:
        return replace(base, width=width, mlp_width=round(ratio * width))

    widths = range(base.n_heads, 4 * base.width, base.n_heads)
    # About 4 d^2 of attention and 2 r d^2 of the MLP a block.
    near = (wanted / base.n_blocks / (4 + 2 * ratio)) ** 0.5
    return min(
        (at(width) for width in sorted(widths, key=lambda width: abs(width - near))[:3]),
        key=lambda design: abs(n_parameters(design, of_blocks=True) - wanted),
    )


EXPERIMENT = Experiment(
    "mlp-ratio",
    "How many hidden units should an MLP have for the width of the stream, at equal parameters?",
    "Kaplan et al. 2020",
    (12.0, 0.7),
    carry_out,
)
