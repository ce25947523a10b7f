"""Do queries need keys and values of their own? Multi-head, grouped and multi-query attention, with as many parameters."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import as_large_as, gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves
from rheoscope.lab.measured import stream

KINDS = {"multi-head": 4, "grouped": 2, "multi-query": 1}  # heads of keys and values
SEEDS_AT_INIT = 16  # other shapes draw other weights, and a stream's size differs by a few per cent from draw to draw
AT_INIT = Architecture(
    6, 256, 4, vocabulary=1000, context=32, norm_kind="rmsnorm", biases=False, activation="relu", positions="none"
)
SHAZEER = "Shazeer 2019 (arXiv:1911.02150), table 3: perplexity 29.9 (multi-head), 30.2 (multi-query)"
AINSLIE = "Ainslie et al. 2023 (arXiv:2305.13245): grouped lies between"


def carry_out(setting: Setting) -> Result:
    """Measure the stream at init, then train all three at equal parameters."""
    states: dict[str, list[list[float]]] = {label: [] for label in KINDS}
    with steps_of(setting, len(KINDS) * SEEDS_AT_INIT) as begin:
        for label, n in KINDS.items():
            for seed in range(SEEDS_AT_INIT):
                begin(f"{label} at init, seed {seed}")
                states[label].append(stream(replace(AT_INIT, n_key_value_heads=n), seed)[0])
    base = small(setting, positions="rotary")
    designs = {label: as_large_as(base, replace(base, n_key_value_heads=n)) for label, n in KINDS.items()}
    frame = trained(designs, setting)
    best = at_best(frame)
    best["hidden units"] = [design.hidden for design in designs.values()]
    best["cached numbers"] = [2 * d.n_shared_heads * d.size_of_head for d in designs.values()]
    claims = (
        *(
            Claim(
                f"RMS of the last state at init, {label} over multi-head, {AT_INIT.n_blocks} blocks",
                over_seeds(a[-1] / b[-1] for a, b in zip(states[label], states["multi-head"], strict=True)),
                "1: a value has the same size whoever shares it",
                "closed form",
                within(1.0, 0.05),
            )
            for label in ("grouped", "multi-query")
        ),
        gap(frame, "multi-query", "multi-head", ".010 (the ratio of perplexities)", SHAZEER),
        gap(frame, "grouped", "multi-head", "between 0 and that of multi-query", AINSLIE),
    )
    lines = [
        curve(
            "RMS of the stream at init against block",
            label,
            [(block, over_seeds(each)) for block, each in enumerate(zip(*values, strict=True))],
        )
        for label, values in states.items()
    ]
    notes = (
        "What shared heads save is the cache of keys and values while text is generated, which no run here does: cached "
        "numbers are those of a token in a block. MLPs are wider "
        "where attention is smaller, as in Shazeer's comparison.",
    )
    return Result(claims, best, pd.concat([*lines, loss_curves(frame)], ignore_index=True), notes=notes)


EXPERIMENT = Experiment(
    "shared-heads",
    "Multi-head, grouped or multi-query attention: does the stream change at init, and does quality at equal parameters?",
    "Shazeer 2019; Ainslie et al. 2023",
    (5.0, 0.8),
    carry_out,
)
