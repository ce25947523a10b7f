"""Dropout or weight decay? On new and on repeated text, and weight decay with the learning rate."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.design_choice import RATES, RATES_QUICK, gap, small_for_text, small_run
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best, sensitivities, swept
from rheoscope.lab.run import Run

ANDRIUSHCHENKO = "Andriushchenko et al. 2023 (arXiv:2310.04415)"
WORTSMAN = "Wortsman et al. 2023 (arXiv:2309.14322), section 3.2.2"
COMMON = "common practice: dropout 0 in one-epoch pretraining of large models, .1 in older ones"
DROPOUT, DECAYS = 0.1, (0.1, 0.3)
N_REPEATED = 8  # batches
BY = "held_out_loss"


def carry_out(setting: Setting) -> Result:
    """Train without either, with dropout and with two weight decays, on new text and on little text seen many times."""
    frame = swept(runs(setting), RATES_QUICK["text"] if setting.is_quick else RATES, setting)
    best = at_best(frame, BY)
    best["held-out less training loss"] = [str(_excess(frame, label)) for label in best["label"]]
    decayed = f"weight decay {DECAYS[-1]:g}"
    claims = (
        Claim(
            f"held-out less training loss on new text, {decayed} less plain, nats",
            over_seeds(_excesses(frame, decayed) - _excesses(frame, "plain")),
            "0: for weight decays of 0, .1 and .3 both losses lie on one line",
            f"{ANDRIUSHCHENKO}, section 4",
            (-0.05, 0.05),
        ),
        gap(frame, decayed, "plain", "-.04 (3.23 for 3.27), after the learning rate has decayed", ANDRIUSHCHENKO, by=BY),
        gap(frame, f"dropout {DROPOUT:g}", "plain", "above 0: it only slows one epoch down", COMMON, by=BY),
        gap(
            frame, f"dropout {DROPOUT:g}, repeated", "plain, repeated", "below 0: it delays learning by heart", COMMON,
            at_most(0.0), by=BY,
        ),
        gap(frame, f"{decayed}, repeated", "plain, repeated", "no figure", COMMON, by=BY),
        Claim(
            f"sensitivity to the learning rate, {decayed} (times the learning rate, as AdamW has it) less plain, nats",
            over_seeds(a - b for a, b in zip(sensitivities(frame, decayed), sensitivities(frame, "plain"), strict=True)),
            "decay that is independent of the learning rate lowers it; no figure for this pair",
            WORTSMAN,
            None,
        ),
    )  # fmt: skip
    line = curve(
        "held-out loss (nats) against weight decay, at its best learning rate",
        "new text",
        [
            (decay, over_seeds(rows_at_best(frame, f"weight decay {decay:g}" if decay else "plain", BY)[BY]))
            for decay in (0.0, *DECAYS)
        ],
    )
    notes = (
        "Training loss is with dropout where there is any, held-out loss without: their difference is comparable between runs "
        "without dropout only. A weight decays by learning rate x decay a step: in so few steps a small one does nothing.",
    )
    return Result(claims, best, pd.concat([line, loss_curves(frame, by=BY)], ignore_index=True), notes=notes)


def runs(setting: Setting) -> dict[str, Run]:
    """Return label -> run."""
    plain = small_run(small_for_text(setting), setting, task="text")
    dropped = replace(plain, architecture=replace(plain.architecture, dropout=DROPOUT))
    once = {
        "plain": plain,
        f"dropout {DROPOUT:g}": dropped,
        **{f"weight decay {decay:g}": replace(plain, weight_decay=decay) for decay in DECAYS},
    }
    again = {
        f"{label}, repeated": replace(run, n_batches=N_REPEATED)
        for label, run in once.items()
        if label != f"weight decay {DECAYS[0]:g}"
    }
    return once | again


def _excesses(frame: pd.DataFrame, label: str) -> pd.Series:
    rows = rows_at_best(frame, label, BY)
    return pd.Series(rows[BY] - rows["last_loss"])


def _excess(frame: pd.DataFrame, label: str) -> Interval:
    return over_seeds(_excesses(frame, label))


EXPERIMENT = Experiment(
    "regularisation",
    "Dropout or weight decay: does either help on new text, and on text seen many times?",
    "Andriushchenko et al. 2023; Wortsman et al. 2023",
    (15.0, 1.0),
    carry_out,
)
