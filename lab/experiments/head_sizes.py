"""Many narrow heads or few wide ones? Heads times their size equal to the width, and beyond it."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import as_large_as, gap, small_for_text, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best
from rheoscope.lab.measured import stream

N_HEADS, N_HEADS_QUICK = (1, 2, 4, 8, 16), (1, 4, 16)
REFERENCE = 4
BY = "held_out_loss"
AT_INIT = Architecture(
    12, 256, 4, vocabulary=1000, context=32, norm_kind="rmsnorm", biases=False, activation="relu", positions="none"
)
VASWANI = (
    "Vaswani et al. 2017 (arXiv:1706.03762), table 3, rows A: 24.9 BLEU (1 head), 25.5 (4), 25.8 (8, 16), 25.4 (32)"
)
TABLE = "published configurations: heads x size over width is 1 to 1.5 in most, 2 in LaMDA, 16 in T5"


def carry_out(setting: Setting) -> Result:
    """Measure the stream at init, then train with several numbers of heads, and with heads of twice their size."""
    counts = N_HEADS_QUICK if setting.is_quick else N_HEADS
    last: dict[int, list[float]] = {n: [] for n in counts}
    with steps_of(setting, len(counts) * len(setting.seeds_at_init)) as begin:
        for n in counts:
            for seed in setting.seeds_at_init:
                begin(f"{n} heads at init, seed {seed}")
                last[n].append(stream(replace(AT_INIT, n_heads=n), seed)[0][-1])
    base = small_for_text(setting)
    designs = {words(n): replace(base, n_heads=n) for n in counts}
    wide = f"{REFERENCE} heads of twice the size"
    designs[wide] = as_large_as(base, replace(base, head_size=2 * base.size_of_head))
    frame = trained(designs, setting, task="text")
    best = at_best(frame, "held_out_loss")
    best["heads x size / width"] = [d.n_heads * d.size_of_head / d.width for d in designs.values()]
    claims = (
        *(
            Claim(
                f"RMS of the last state at init, {words(n)} over {words(REFERENCE)}",
                over_seeds(a / b for a, b in zip(last[n], last[REFERENCE], strict=True)),
                "1: heads share the width without changing sizes",
                "closed form",
                within(1.0, 0.05),
            )
            for n in counts
            if n != REFERENCE
        ),
        *(
            gap(frame, words(n), words(REFERENCE), "above 0: worse with one head, and with too many", VASWANI, by=BY)
            for n in counts
            if n != REFERENCE
        ),
        gap(frame, wide, words(REFERENCE), "no figure", TABLE, by=BY),
    )
    line = curve(
        "held-out loss (nats) against heads, at their best learning rates",
        "heads x size = width",
        [(n, over_seeds(rows_at_best(frame, words(n), BY)[BY])) for n in counts],
    )
    notes = (
        "Half a BLEU point between numbers of heads, after a full training, is more than a few hundred steps can tell apart.",
    )
    return Result(claims, best, pd.concat([line, loss_curves(frame, by=BY)], ignore_index=True), notes=notes)


def words(n: int) -> str:
    """Return the label of ``n`` heads that share the width."""
    return f"{n} head" if n == 1 else f"{n} heads"


EXPERIMENT = Experiment(
    "heads",
    "How many heads should share the width, and should they be as wide together as the stream?",
    "Vaswani et al. 2017",
    (12.0, 0.7),
    carry_out,
)
