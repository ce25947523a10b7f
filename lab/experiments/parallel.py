"""Serial or parallel branches? The same stream and gradients at init, and how both train."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves
from rheoscope.lab.measured import at_init

KINDS = {"serial": False, "parallel": True}
AT_INIT = Architecture(
    12, 256, 4, vocabulary=1000, context=32, norm_kind="rmsnorm", biases=False, activation="relu", positions="none"
)
LAW = "closed form: they differ by products of two branches, O(1 / blocks)"
PALM = "Chowdhery et al. 2022 (arXiv:2204.02311), PaLM, section 2"


def carry_out(setting: Setting) -> Result:
    """Measure the stream and the gradients at init, then train both."""
    states: dict[str, list[list[float]]] = {label: [] for label in KINDS}
    ratios: dict[str, list[float]] = {label: [] for label in KINDS}
    with steps_of(setting, len(KINDS) * len(setting.seeds_at_init)) as begin:
        for label, is_parallel in KINDS.items():
            for seed in setting.seeds_at_init:
                begin(f"{label} at init, seed {seed}")
                tables = Tables(at_init(replace(AT_INIT, is_parallel=is_parallel), seed))
                stream = tables.state_rms().groupby("block")["rms"].last()  # -1: the embedding
                gradients = tables.gradient_profile().sort_values("depth")["rms"]
                states[label].append([float(value) for value in stream])
                ratios[label].append(float(gradients.iloc[0] / gradients.iloc[-1]))
    frame = trained({label: small(setting, is_parallel=each) for label, each in KINDS.items()}, setting)
    best = at_best(frame)
    best["RMS of the last state at init"] = [str(over_seeds(each[-1] for each in states[label])) for label in KINDS]
    best["first gradient over last at init"] = [str(over_seeds(ratios[label])) for label in KINDS]
    claims = (
        Claim(
            "RMS of the last state at init, parallel over serial, 12 blocks",
            over_seeds(a[-1] / b[-1] for a, b in zip(states["parallel"], states["serial"], strict=True)),
            ".974 (.573 over .588)",
            LAW,
            within(0.974, 0.05),  # how well the closed form of an RMS is known to hold
        ),
        Claim(
            "gradient RMS of the first state over the last's, parallel over serial",
            over_seeds(a / b for a, b in zip(ratios["parallel"], ratios["serial"], strict=True)),
            ".953 (24.5 over 25.7)",
            LAW,
            within(0.953, 0.1),
        ),
        gap(frame, "parallel", "serial", "small at 8B, none at 62B parameters", PALM),
        Claim(
            "CPU time of a training run, parallel over serial",
            over_seeds([float(best["cpu_seconds"].iloc[1] / best["cpu_seconds"].iloc[0])]),
            ".87: 15 % faster, with matrices joined, at scale",
            PALM,
            None,
        ),
    )
    lines = [
        curve(
            "RMS of the stream at init against block",
            label,
            [(block, over_seeds(each)) for block, each in enumerate(zip(*values, strict=True))],
        )
        for label, values in states.items()
    ]
    notes = ("The parallel block has a norm for each branch here; models that share one save half of the norms.",)
    return Result(claims, best, pd.concat([*lines, loss_curves(frame)], ignore_index=True), notes=notes)


EXPERIMENT = Experiment(
    "parallel",
    "Serial or parallel branches: do stream and gradients differ at init, and does training?",
    "Chowdhery et al. 2022 (PaLM)",
    (4.0, 0.6),
    carry_out,
)
