"""Deep or wide? Depth against width at equal parameters."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import n_parameters, small_for_text, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, increases, loss_curves

DEPTHS, DEPTHS_QUICK = (1, 2, 4, 8, 16), (1, 2, 4, 8)
KAPLAN = "Kaplan et al. 2020 (arXiv:2001.08361), figure 5: loss increase against the best, flat for width / blocks of 10 to 330"
FLAT = (10.0, 330.0)


def carry_out(setting: Setting) -> Result:
    """Train stacks of several depths whose blocks have as many parameters."""
    base = small_for_text(setting, n_heads=2)  # widths in steps of two
    depths = DEPTHS_QUICK if setting.is_quick else DEPTHS
    designs = {f"{depth} x {design.width}": design for depth in depths for design in [of_depth(base, depth)]}
    frame = trained(designs, setting, task="text")
    best = at_best(frame, "held_out_loss")
    ratios = {label: design.width / design.n_blocks for label, design in designs.items()}
    best["width / blocks"] = list(ratios.values())
    best["parameters of blocks"] = sizes = [n_parameters(design, of_blocks=True) for design in designs.values()]
    reference = next(label for label, design in designs.items() if design.n_blocks == base.n_blocks)
    increase = increases(frame, reference)
    claims = (
        Claim(
            "most parameters of blocks over fewest", over_seeds([max(sizes) / min(sizes)]), "1", KAPLAN, within(1, 0.1)
        ),
        *(
            Claim(
                f"held-out loss of {label} (blocks x width, ratio {ratios[label]:.0f}) over that of {reference}, per cent",
                over_seeds(values),
                "below 3" if FLAT[0] <= ratios[label] <= FLAT[1] else "no figure: outside of what is flat",
                KAPLAN,
                at_most(3.0) if FLAT[0] <= ratios[label] <= FLAT[1] else None,
            )
            for label, values in increase.items()
        ),
    )
    line = curve(
        "held-out loss increase (%) against width over blocks",
        "measured",
        [(ratios[label], over_seeds(values)) for label, values in increase.items()],
    )
    notes = (
        "Published figures are of models trained to convergence; in a few hundred steps deep stacks of so few channels are "
        "behind because they learn more slowly. The embedding and the head grow with the width, which favours wide ones.",
    )
    lines = pd.concat([line, loss_curves(frame, by="held_out_loss")], ignore_index=True)
    return Result(claims, best, lines, notes=notes)


def of_depth(base: Architecture, depth: int) -> Architecture:
    """Return the design of ``depth`` blocks with the width at which they have as many parameters as the base's."""
    wanted = n_parameters(base, of_blocks=True)
    near = base.width * (base.n_blocks / depth) ** 0.5
    widths = sorted(range(base.n_heads, 8 * base.width, base.n_heads), key=lambda width: abs(width - near))[:2]
    designs = [replace(base, n_blocks=depth, width=width) for width in widths]
    return min(designs, key=lambda design: abs(n_parameters(design, of_blocks=True) - wanted))


EXPERIMENT = Experiment(
    "aspect",
    "Deep or wide: how does the loss depend on depth against width at equal parameters?",
    "Kaplan et al. 2020",
    (13.0, 0.8),
    carry_out,
)
