"""How much does the output move when the weights do, and how does that grow with depth? Liu et al. 2020 (Admin)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, at_most, curve, steps_of
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.measured import at_init
from rheoscope.lab.power_law import power_law

BASE = Architecture(
    2, 128, 4, vocabulary=256, context=32, norm_kind="layernorm", biases=False, activation="relu", init="xavier"
)
VARIANTS = {
    "post-norm": replace(BASE, norm_placement="post"),
    "pre-norm": BASE,
    "double norm": replace(BASE, norm_placement="double"),
    "DeepNorm": replace(BASE, norm_placement="post", depth_scaling="deepnorm"),
}
DEPTHS, DEPTHS_QUICK = (2, 4, 8, 16, 32), (2, 4, 8, 16)
SOURCE = (
    "Liu et al. 2020 (arXiv:2004.08249), section 4.2: Var[F(x, W) - F(x, W*)] is O(N) after, O(log N) before the branch"
)
DEEPNET = "Wang et al. 2022 (arXiv:2203.00555), DeepNet, theorem 4.2: 2N beta^4 / alpha^2 falls as 1 / sqrt(N)"


def carry_out(setting: Setting) -> Result:
    """Measure the change of the last state by a small random change of all block weights, at several depths."""
    depths = DEPTHS_QUICK if setting.is_quick else DEPTHS
    found: dict[str, dict[int, list[float]]] = {label: {depth: [] for depth in depths} for label in VARIANTS}
    with steps_of(setting, len(VARIANTS) * len(depths) * len(setting.seeds_at_init)) as begin:
        for label, design in VARIANTS.items():
            for depth in depths:
                for seed in setting.seeds_at_init:
                    begin(f"{label}, {depth} blocks, seed {seed}")
                    recording = at_init(replace(design, n_blocks=depth), seed)
                    found[label][depth].append(float(Tables(recording).identity("relative_amplification") or math.nan))
    slopes = {
        label: over_seeds(_slope(by_depth, seed) for seed in range(len(setting.seeds_at_init)))
        for label, by_depth in found.items()
    }
    what = "slope of the logarithm of amplification, over the state's own size, against that of blocks, {}"
    claims = (
        Claim(what.format("post-norm"), slopes["post-norm"], "1: linear in the depth, or more", SOURCE, at_least(0.9)),
        Claim(what.format("pre-norm"), slopes["pre-norm"], "logarithmic: below 1", SOURCE, at_most(0.8)),
        Claim(
            what.format("double norm"),
            slopes["double norm"],
            "no figure; every write has the same size",
            SOURCE,
            at_most(0.8),
        ),
        Claim(what.format("DeepNorm"), slopes["DeepNorm"], "-.5", DEEPNET, (-0.6, -0.4)),
    )
    variants = pd.DataFrame(
        [
            {"label": label, **{f"{depth} blocks": str(over_seeds(values)) for depth, values in by_depth.items()}}
            for label, by_depth in found.items()
        ]
    )
    chart = "change of the last state, over its size, per change of the weights against blocks"
    lines = [
        curve(chart, label, [(depth, over_seeds(values)) for depth, values in by_depth.items()])
        for label, by_depth in found.items()
    ]
    notes = ("The orders O(N) and O(log N) are the paper's; its constants depend on the width and are not claimed.",)
    return Result(claims, variants, pd.concat(lines, ignore_index=True), notes=notes)


def _slope(by_depth: Mapping[int, list[float]], seed: int) -> float:
    """Return the exponent of the depth."""
    law = power_law(list(by_depth), [values[seed] for values in by_depth.values()])
    return math.nan if law is None else law.exponent


EXPERIMENT = Experiment(
    "admin",
    "By how much does a small change of the weights move the output, and how does that grow with depth?",
    "Liu et al. 2020 (Admin)",
    (2.0, 1.0),
    carry_out,
)
