"""The theory and the figures of Xiong et al. 2020: states, last-layer gradients and the profile of an encoder-decoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import linear_regression

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, at_most, curve, steps_of
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.tasks import task
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor

PAPER = "Xiong et al. 2020 (arXiv:2002.04745)"
# Lemma 2's own setting: one head, every matrix d x d, ReLU, Gaussian inputs; queries are zeroed below.
LEMMA = Architecture(
    24, 256, 1, 256, context=32, init="lecun", activation="relu", biases=False, positions="none", norm_eps=0.0
)
# Figure 3's: an encoder and a decoder, hidden layers of twice the width, embeddings tied.
FIGURE = Architecture(
    6,
    256,
    4,
    512,
    500,
    32,
    init="xavier",
    activation="relu",
    positions="none",
    ties_embeddings=True,
    embedding_std=1 / 16,
)
DEPTHS, DEPTHS_QUICK = (4, 6, 8, 12), (4, 8)


def carry_out(setting: Setting) -> Result:
    """Measure E|x|^2 by depth, the last MLP's gradient against depth, and every decoder block's at one depth."""
    depths = DEPTHS_QUICK if setting.is_quick else DEPTHS
    seeds = setting.seeds_at_init
    with steps_of(setting, len(seeds) * (1 + 2 * len(depths) + 2)) as begin, one_thread():
        states = []
        for seed in seeds:
            begin(f"lemma 2, seed {seed}")
            states.append(_states(seed))
        last = {
            (place, depth): [
                _mlp_gradients(
                    begin, replace(FIGURE, norm_placement=place, n_blocks=depth, n_encoder_blocks=depth), seed, -1
                )[-1]
                for seed in seeds
            ]
            for place in ("post", "pre")
            for depth in depths
        }
        profile = {
            place: [
                _mlp_gradients(begin, replace(FIGURE, norm_placement=place, n_encoder_blocks=6), seed, 0)
                for seed in seeds
            ]
            for place in ("post", "pre")
        }
    curves = [
        curve("E|x|^2 / d of the state against block (pre-norm)", "measured", _by_index(states)),
        *(
            curve(
                "gradient norm of the last decoder MLP's second matrix against blocks",
                f"{place}-norm",
                [(depth, over_seeds(values)) for (where, depth), values in last.items() if where == place],
            )
            for place in ("post", "pre")
        ),
        *(
            curve("gradient norm of MLPs' first matrix against decoder block", f"{place}-norm", _by_index(values))
            for place, values in profile.items()
        ),
    ]
    variants = pd.DataFrame(
        [
            {"label": f"{place}-norm", **{f"block {k}": str(each) for k, each in _by_index(values)}}
            for place, values in profile.items()
        ]
    )
    notes = (
        "That post-norm gradients grow toward the output is an effect of cross attention: in a decoder alone they rise by a few "
        "tenths from the first to the last block.",
    )
    return Result(tuple(_claims(states, last, profile)), variants, pd.concat(curves, ignore_index=True), notes=notes)


def _claims(
    states: list[list[float]], last: dict[tuple[str, int], list[float]], profile: dict[str, list[list[float]]]
) -> list[Claim]:
    lemma, theorem, figure = f"{PAPER}, lemma 2", f"{PAPER}, theorem 1 and figure 3c", f"{PAPER}, figure 3a"
    slope = over_seeds(linear_regression(range(len(q)), q).slope for q in states)
    bounds = over_seeds(max(max((1 + k / 2) / x, x / (1 + 3 * k / 2)) for k, x in enumerate(q)) for q in states)
    depths = sorted({depth for _, depth in last})
    by_depth = {
        place: [[last[place, depth][k] for depth in depths] for k in range(len(states))] for place in ("post", "pre")
    }
    logs = [math.log(depth) for depth in depths]
    return [
        Claim(
            "states against the bounds (1 + l/2) d and (1 + 3l/2) d: the worst factor by which one is passed",
            bounds,
            "at most 1: both hold at every block",
            lemma,
            at_most(1.05),
        ),
        Claim("growth of E|x|^2 / d a block, pre-norm", slope, "between .5 and 1.5, constant", lemma, (0.5, 1.5)),
        Claim(
            "last MLP's gradient, post-norm: largest over smallest over depths",
            over_seeds(max(values) / min(values) for values in by_depth["post"]),
            "independent of depth (about 1.6 throughout)",
            theorem,
            at_most(1.15),
        ),
        Claim(
            "last MLP's gradient, pre-norm: slope of its logarithm against that of the depth",
            over_seeds(
                linear_regression(logs, [math.log(value) for value in values]).slope for values in by_depth["pre"]
            ),
            "-.5",
            theorem,
            (-0.7, -0.35),
        ),
        Claim(
            "last over first decoder block, post-norm", _ends(profile["post"]), "22 (1.3 / .06)", figure, at_least(2.5)
        ),
        Claim("last over first decoder block, pre-norm", _ends(profile["pre"]), ".82 (.18 / .22)", figure, (0.6, 1.1)),
    ]


def _states(seed: int) -> list[float]:
    """Return the mean square of the input and of every block's state, with Gaussian inputs and even attention."""
    model = ReferenceTransformer(LEMMA, seed=seed)
    x: Tensor = torch.randn(4, LEMMA.context, LEMMA.width, generator=torch.Generator().manual_seed(seed))
    found = [float(x.square().mean())]
    with torch.no_grad():
        for block in model.blocks:
            block.get_parameter("attention.query.weight").zero_()
            x = block(x)
            found.append(float(x.square().mean()))
    return found


def _mlp_gradients(begin: Callable[[str], None], design: Architecture, seed: int, which: int) -> list[float]:
    """Return the gradient norms of the decoder MLPs' first (0) or second (-1) matrices on Zipf tokens."""
    begin(f"{design.norm_placement}-norm, {design.n_blocks} + {design.n_blocks} blocks, seed {seed}")
    model = ReferenceTransformer(design, seed=seed)
    tokens = next(task("zipf")(design.vocabulary, 8, design.context, seed))
    source = next(task("zipf")(design.vocabulary, 8, design.context, seed + 1000))
    loss = model(tokens[:, :-1], tokens[:, 1:], source[:, :-1]).loss
    loss.backward()
    name = "mlp.up.weight" if which == 0 else "mlp.down.weight"
    return [float(_gradient(block.get_parameter(name)).norm()) for block in model.blocks]


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _by_index(values: list[list[float]]) -> list[tuple[float, Interval]]:
    return [(index, over_seeds(each)) for index, each in enumerate(zip(*values, strict=True))]


def _ends(values: list[list[float]]) -> Interval:
    return over_seeds(each[-1] / each[0] for each in values)


EXPERIMENT = Experiment(
    "xiong",
    "Do states, last-layer gradients and the profile over blocks follow the theory of pre- and post-norm?",
    "Xiong et al. 2020",
    (1.0, 0.5),
    carry_out,
)
