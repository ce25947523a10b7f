"""What do a norm before and behind the branch, or behind it alone, change? The stream's growth, and whose scale counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, steps_of, within
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.learning_rates import at_best, gaps, loss_curves, swept
from rheoscope.lab.measured import stream
from rheoscope.lab.run import Run
from rheoscope.lab.tasks import task
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer

BASE = Architecture(
    12, 256, 4, vocabulary=256, context=32, norm_kind="rmsnorm", biases=False, activation="relu", positions="none"
)
PLACEMENTS = {"pre": "pre-norm", "double": "double norm", "reordered": "reordered norm"}
STDS = (0.02, 0.06)
TRAINED = Architecture(
    6, 64, 4, vocabulary=64, context=48, norm_kind="rmsnorm", biases=False, positions="rotary", qk_norm=True
)
RATES, RATES_QUICK = (1e-3, 3e-3, 1e-2, 3e-2), (3e-3, 1e-2)
FACTOR = 4.0
PERI = "Kim et al. 2025 (arXiv:2502.02732), Peri-LN, section 3"


def carry_out(setting: Setting) -> Result:
    """Measure the stream at two sizes of the init and the gradient of a scaled matrix, then train all three."""
    with steps_of(setting, len(setting.seeds_at_init) * (len(PLACEMENTS) * len(STDS) + 2)) as begin, one_thread():
        growth: dict[tuple[str, float], list[list[float]]] = {}
        for place in PLACEMENTS:
            for std in STDS:
                growth[place, std] = []
                for seed in setting.seeds_at_init:
                    begin(f"{PLACEMENTS[place]}, init {std:g}, seed {seed}")
                    design = replace(BASE, norm_placement=place, init_std=std)
                    growth[place, std].append([size**2 for size in stream(design, seed, batch_size=8)[0]])
        scaled: dict[str, list[float]] = {}
        for place in ("pre", "double"):
            scaled[place] = []
            for seed in setting.seeds_at_init:
                begin(f"{PLACEMENTS[place]}, a matrix times {FACTOR:g}, seed {seed}")
                scaled[place].append(_gradient_when_scaled(replace(BASE, norm_placement=place, norm_eps=1e-12), seed))
    runs = {
        words: Run(replace(TRAINED, norm_placement=place), lr=1e-3, n_steps=200, warm_up=20)
        for place, words in PLACEMENTS.items()
    }
    frame = swept(runs, RATES_QUICK if setting.is_quick else RATES, setting)
    best = at_best(frame)
    best["growth of E|x|^2 / d a block at init (std .02)"] = [
        str(_slope(growth[place, STDS[0]])) for place in PLACEMENTS
    ]
    lines = [
        curve(
            "E|x|^2 / d against block at init (std .02)",
            words,
            [(k, over_seeds(each)) for k, each in enumerate(zip(*growth[place, STDS[0]], strict=True))],
        )
        for place, words in PLACEMENTS.items()
    ]
    claims = [*_claims_at_init(growth, scaled), *_claims_of_training(frame, is_quick=setting.is_quick)]
    return Result(tuple(claims), best, pd.concat([*lines, loss_curves(frame)], ignore_index=True))


def _claims_at_init(growth: dict[tuple[str, float], list[list[float]]], scaled: dict[str, list[float]]) -> list[Claim]:
    found = [
        Claim(
            f"growth of E|x|^2 / d a block, {PLACEMENTS[place]}, init {std:g}",
            _slope(values),
            "2, whatever the init",
            PERI,
            within(2.0, 0.1),  # the RMS to 5 %
        )
        for (place, std), values in growth.items()
        if place != "pre"
    ]
    ratios = [
        math.sqrt(large[-1] / small[-1])
        for small, large in zip(growth["pre", STDS[0]], growth["pre", STDS[1]], strict=True)
    ]
    found += [
        Claim(
            "RMS of the last state with three times the init over that with one, pre-norm",
            over_seeds(ratios),
            "above 1: the stream follows the weights",
            PERI,
            (1.5, math.inf),
        ),
        Claim(
            f"gradient of an MLP's last matrix when it is multiplied by {FACTOR:g}, double norm, over before",
            over_seeds(scaled["double"]),
            f"1 / {FACTOR:g}, exactly",
            "the output does not depend on the matrix's scale: Euler's identity for functions of degree 0",
            within(1 / FACTOR, 1e-3),
        ),
        Claim(
            "the same, pre-norm",
            over_seeds(scaled["pre"]),
            "grows with the hidden state instead",
            PERI,
            (0.3, math.inf),
        ),
    ]
    return found


def _claims_of_training(frame: pd.DataFrame, *, is_quick: bool) -> list[Claim]:
    return [
        Claim(
            "best loss of double norm less pre-norm, nats",
            over_seeds(gaps(frame, "double norm", "pre-norm")),
            "lower, with 2 to 4 points on benchmarks at 400M to 3.2B parameters",
            PERI,
            None,
        ),
        Claim(
            "best loss of reordered norm with QK-norm less pre-norm, nats",
            over_seeds(gaps(frame, "reordered norm", "pre-norm")),
            "about 0",
            "OLMo 2 (arXiv:2501.00656)",
            None if is_quick else at_most(0.3),
        ),
    ]


def _gradient_when_scaled(design: Architecture, seed: int) -> float:
    """Return by what the gradient norm of an MLP's last matrix changes when the matrix is multiplied by FACTOR."""
    norms = []
    for factor in (1.0, FACTOR):
        model = ReferenceTransformer(design, seed=seed).double()
        weight = model.blocks[design.n_blocks // 2].get_parameter("mlp.down.weight")
        with torch.no_grad():
            weight.mul_(factor)
        batch = next(task("uniform")(design.vocabulary, 4, design.context, seed))
        model(batch[:, :-1], batch[:, 1:]).loss.backward()
        assert weight.grad is not None
        norms.append(float(weight.grad.norm()))
    return norms[1] / norms[0]


def _slope(streams: list[list[float]]) -> Interval:
    """Return the growth a block, of a stack in which it is constant."""
    return over_seeds((each[-1] - each[0]) / (len(each) - 1) for each in streams)


EXPERIMENT = Experiment(
    "double-norm",
    "What does a norm behind the branch change, with one before it or without?",
    "Kim et al. 2025 (Peri-LN); OLMo 2, 2025",
    (15.0, 3.0),
    carry_out,
)
