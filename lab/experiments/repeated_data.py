"""May data be repeated? One epoch against many over the same number of steps."""

from __future__ import annotations

import pandas as pd
from rheoscope.lab.design_choice import RATES, RATES_QUICK, gap, small_for_text, small_run
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, curve
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best, swept

EPOCHS = (1, 4, 16, 64)
MUENNIGHOFF = "Muennighoff et al. 2023 (arXiv:2305.16264)"
BY = "held_out_loss"


def carry_out(setting: Setting) -> Result:
    """Train on text seen once, and on less text seen several times, and judge on text that is never trained on."""
    design = small_for_text(setting)
    n_steps = 256 if setting.is_quick else 1024
    runs = {
        words(epochs): small_run(design, setting, task="text", n_steps=n_steps, n_batches=n_steps // epochs)
        for epochs in EPOCHS
    }
    frame = swept(runs, RATES_QUICK["text"] if setting.is_quick else RATES, setting)
    best = at_best(frame, BY)
    at = {label: rows_at_best(frame, label, BY) for label in runs}
    excess = {label: over_seeds(rows[BY] - rows["last_loss"]) for label, rows in at.items()}
    best["different batches"] = [run.n_batches for run in runs.values()]
    best["held-out less training loss"] = [str(each) for each in excess.values()]
    once, four, most = words(1), words(4), words(EPOCHS[-1])
    claims = (
        gap(
            frame, four, once, "about 0: up to 4 epochs are nearly as good as new data", MUENNIGHOFF, (-0.1, 0.1), by=BY
        ),
        gap(frame, words(16), once, "above 0: the value of repeating decays", MUENNIGHOFF, at_least(0.0), by=BY),
        gap(frame, most, once, "above 0: beyond some 40 epochs nothing is gained", MUENNIGHOFF, at_least(0.0), by=BY),
        Claim(
            f"held-out less training loss, {most}, less the same of {once}, nats",
            over_seeds((at[most][BY] - at[most]["last_loss"]) - (at[once][BY] - at[once]["last_loss"])),
            "above 0: the model learns its batches by heart",
            MUENNIGHOFF,
            at_least(0.0),
        ),
    )
    line = curve(
        "held-out loss (nats) against epochs, at its best learning rate",
        "equal steps",
        [(epochs, over_seeds(at[words(epochs)][BY])) for epochs in EPOCHS],
    )
    notes = (
        f"All runs take {n_steps} steps of 16 x {design.context} bytes: more epochs mean less different text. The published "
        "figures are of models and data 10,000 times larger.",
    )
    return Result(claims, best, pd.concat([line, loss_curves(frame, by=BY)], ignore_index=True), notes=notes)


def words(epochs: int) -> str:
    """Return the label of runs that see their text so often."""
    return "one epoch" if epochs == 1 else f"{epochs} epochs"


EXPERIMENT = Experiment(
    "repeated-data",
    "May data be repeated: what does seeing the same text again cost on text that was never seen?",
    "Muennighoff et al. 2023",
    (16.0, 1.2),
    carry_out,
)
