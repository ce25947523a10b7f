"""Norm placement, biases and depth together: a factorial experiment with its interactions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, curve, steps_of, within
from rheoscope.lab.factorial import Cell, effects
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best, swept
from rheoscope.lab.measured import transmission_at_init
from rheoscope.lab.run import Run

FACTORS = ("post-norm", "biases", "depth")
DEPTHS, DEPTHS_QUICK = (2, 12), (2, 8)  # that are trained
DEPTHS_AT_INIT = (6, 12)
BASE = Architecture(2, 48, 4, vocabulary=64, context=32, init="xavier", activation="relu")
RATES, RATES_QUICK = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2)
SIX_BLOCKS = -2.62  # logarithm of .016 over .22: skip transmission of post-norm at 12 and at 6 blocks
XIONG = "Xiong et al. 2020 (arXiv:2002.04745)"
PALM = "Chowdhery et al. 2022 (arXiv:2204.02311), PaLM, section 2"


def carry_out(setting: Setting) -> Result:
    """Measure skip transmission of all eight cells at init, train them, and take both apart into effects."""
    depths = DEPTHS_QUICK if setting.is_quick else DEPTHS
    fresh, designs = cells(DEPTHS_AT_INIT), cells(depths)
    transmission: dict[Cell, list[float]] = {levels: [] for levels in fresh}
    with steps_of(setting, len(fresh) * len(setting.seeds_at_init)) as begin:
        for levels, design in fresh.items():
            for seed in setting.seeds_at_init:
                begin(f"{label(levels, DEPTHS_AT_INIT)} at init, seed {seed}")
                transmission[levels].append(math.log(transmission_at_init(design, seed)))
    n_steps = 220 if setting.is_quick else 400
    runs = {
        label(levels, depths): Run(design, lr=1e-3, n_steps=n_steps, warm_up=0, cosine=True)
        for levels, design in designs.items()
    }
    frame = swept(runs, RATES_QUICK if setting.is_quick else RATES, setting)
    last = {levels: list(rows_at_best(frame, label(levels, depths))["last_loss"]) for levels in designs}
    of_skip, of_loss = effects(transmission, FACTORS), effects(last, FACTORS)
    best = at_best(frame)
    chart = "last loss (nats) at its best learning rate against blocks"
    lines = [
        curve(chart, label((post, biases, False), depths).split(", ", 1)[1], [
            (depth, over_seeds(last[post, biases, is_deep])) for is_deep, depth in zip((False, True), depths, strict=True)
        ])
        for post, biases in product((False, True), repeat=2)
    ]  # fmt: skip
    return Result(
        tuple(_claims(of_skip, of_loss)),
        best,
        pd.concat([*lines, loss_curves(frame)], ignore_index=True),
        notes=(
            "An interaction is a difference of differences: what post-norm adds to the loss in the deep model, less what it "
            "adds in the shallow one. Every cell is judged at its own best learning rate, without warm-up.",
        ),
    )


def cells(depths: Sequence[int]) -> dict[Cell, Architecture]:
    """Return the eight architectures by (is post-norm, has biases, is deep)."""
    return {
        (post, biases, deep): replace(
            BASE, norm_placement="post" if post else "pre", biases=biases, n_blocks=depths[int(deep)]
        )
        for post, biases, deep in product((False, True), repeat=3)
    }


def label(levels: Cell, depths: Sequence[int]) -> str:
    """Return the words of one cell."""
    post, biases, deep = levels
    return f"{depths[int(deep)]} blocks, {'post' if post else 'pre'}-norm, {'biases' if biases else 'no biases'}"


def _claims(of_skip: Mapping[tuple[str, ...], Interval], of_loss: Mapping[tuple[str, ...], Interval]) -> list[Claim]:
    published: dict[tuple[str, ...], tuple[str, str, tuple[float, float] | None]] = {
        ("post-norm",): ("above 0 without warm-up", f"{XIONG}, section 3.2", at_least(0.0)),
        ("depth",): ("no figure", XIONG, None),
        ("biases",): ("no figure; none are used in large models", PALM, None),
        ("post-norm", "depth"): ("above 0: the damage grows with the depth", f"{XIONG}, theorem 1", at_least(0.0)),
    }
    return [
        Claim(
            "interaction of post-norm and depth (6, 12 blocks) on the logarithm of skip transmission at init",
            of_skip["post-norm", "depth"],
            f"{SIX_BLOCKS}: from .22 to .016",
            "closed form: 1 / sqrt(1 + G) a norm, Xavier init",
            within(SIX_BLOCKS, 0.25),
        ),
        Claim(
            "effect of biases on the same",
            of_skip["biases",],
            "0: they start at 0",
            "closed form",
            (-1e-6, 1e-6),
        ),
        *(
            Claim(
                f"{'effect' if len(names) == 1 else 'interaction'} of {' and '.join(names)} on the last loss, nats",
                value,
                *published.get(names, ("no figure", "no publication known", None)),
            )
            for names, value in of_loss.items()
        ),
    ]


EXPERIMENT = Experiment(
    "placement-biases-depth",
    "Do norm placement, biases and depth act each on its own, or does one change what another does?",
    "Xiong et al. 2020; Chowdhery et al. 2022 (PaLM)",
    (11.0, 1.5),
    carry_out,
)
