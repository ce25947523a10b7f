"""How do positions enter? None, learned, sinusoidal, rotary or ALiBi, and whose logits see distances alone."""

from __future__ import annotations

import math

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, at_most, curve, steps_of
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best
from rheoscope.lab.positions import bias_of_logits, rotary, sinusoidal
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor

KINDS = {"none": "none", "learned": "learned", "sinusoidal": "sinusoidal", "rotary": "rotary", "ALiBi": "alibi"}
LENGTH, SIZE = 512, 64
SEES_DISTANCE = {"rotary", "ALiBi"}
ROFORMER = "Su et al. 2021 (arXiv:2104.09864), RoFormer, equation 11"
SOURCES = {
    "learned": "Vaswani et al. 2017 (arXiv:1706.03762), section 3.5",
    "sinusoidal": "Vaswani et al. 2017 (arXiv:1706.03762), section 3.5",
    "rotary": ROFORMER,
    "ALiBi": "Press et al. 2021 (arXiv:2108.12409), section 3",
}
HAVIV = "Haviv et al. 2022 (arXiv:2203.16634): causal attention learns positions without any"


def carry_out(setting: Setting) -> Result:
    """Check the identity of rotary positions, see which logits depend on distances alone, and train all five."""
    exact: dict[str, list[float]] = {"products": [], "products, float32": [], "norms": []}
    beyond: dict[str, list[float]] = {label: [] for label in SOURCES}
    with steps_of(setting, len(setting.seeds_at_init)) as begin, one_thread():
        for seed in setting.seeds_at_init:
            begin(f"logits of one repeated token, seed {seed}")
            exact["products"].append(deviation(_products(seed, torch.float64)))
            exact["products, float32"].append(deviation(_products(seed, torch.float32)))
            exact["norms"].append(_change_of_norm(seed))
            for label in SOURCES:
                beyond[label].append(deviation(repeated_logits(small(setting, positions=KINDS[label]), seed)))
    frame = trained({label: small(setting, positions=kind) for label, kind in KINDS.items()}, setting)
    best = at_best(frame)
    best["off-distance logits"] = ["" if label == "none" else str(over_seeds(beyond[label])) for label in KINDS]
    chance = float(frame["chance"].iloc[0])
    claims = (
        Claim(
            f"rotary: spread of a product over pairs of one distance, over all spread ({LENGTH} positions, float64)",
            over_seeds(exact["products"]),
            "0: <R_i q, R_j k> depends on i - j alone",
            ROFORMER,
            at_most(1e-12),
        ),
        Claim("the same in float32", over_seeds(exact["products, float32"]), "rounding", ROFORMER, at_most(1e-5)),
        Claim(
            "rotary: largest relative change of a vector's norm (float64)",
            over_seeds(exact["norms"]),
            "0: it is a turn",
            ROFORMER,
            at_most(1e-12),
        ),
        *(
            Claim(
                f"{label}: share of the spread of first-block logits of one repeated token that distances do not explain",
                over_seeds(beyond[label]),
                "0: distances alone" if label in SEES_DISTANCE else "not 0: positions themselves count",
                source,
                at_most(1e-4) if label in SEES_DISTANCE else at_least(0.1),
            )
            for label, source in SOURCES.items()
        ),
        Claim(
            f"last loss without positions at its best rate (chance is {chance:.3f})",
            over_seeds(rows_at_best(frame, "none")["last_loss"]),
            "learns all the same",
            HAVIV,
            at_most(chance - 0.5),
        ),
        *(
            gap(frame, label, "rotary", "no figure for this task", source)
            for label, source in SOURCES.items()
            if label != "rotary"
        ),
    )
    places = sinusoidal(LENGTH, SIZE)
    line = curve(
        "product of two sinusoidal positions against their distance",
        "sinusoidal",
        [(float(k), over_seeds([float(places[k] @ places[0])])) for k in range(0, 128, 2)],
    )
    notes = (
        "Sinusoids' own products depend on distances alone, but between them stand the projections of queries and keys. The task "
        "asks for the token two places back: it says nothing of positions in long text. A loss below chance without positions "
        "is no proof that they are known: which tokens occur helps too.",
    )
    return Result(claims, best, pd.concat([line, loss_curves(frame)], ignore_index=True), notes=notes)


def deviation(logits: Tensor) -> float:
    """Return the root of the share of logits' variance that distances do not explain.

    Args:
        logits: shape (..., query position, key position); pairs with the key before the query, or at its place, count.
    """
    values = logits.double().flatten(0, -3) if logits.dim() > 2 else logits.double()[None]
    n, within, whole = values.shape[-1], 0.0, 0.0
    seen = torch.ones(n, n).tril().bool()
    for each in values:
        whole += float((each[seen] - each[seen].mean()).square().sum())
        for distance in range(n):
            same = each.diagonal(-distance)
            within += float((same - same.mean()).square().sum())
    return math.sqrt(within / whole)


def repeated_logits(design: Architecture, seed: int) -> Tensor:
    """Return first-block attention logits where all tokens are the same, shape (heads, position, position), in float64."""
    model = ReferenceTransformer(design, seed=seed).double()
    tokens = torch.full((1, design.context), 3)
    x = model.token_embedding(tokens)
    if design.positions == "learned":
        x = x + model.position_embedding(torch.arange(design.context))
    elif design.positions == "sinusoidal":
        x = x + sinusoidal(design.context, design.width)
    block = model.blocks[0]
    with torch.no_grad():
        q, k = (
            block.get_submodule(f"attention.{name}")(block.get_submodule("attention_in")(x))
            .unflatten(-1, (design.n_heads, -1))
            .transpose(1, 2)
            for name in ("query", "key")
        )
        if design.positions == "rotary":
            q, k = rotary(q), rotary(k)
        logits: Tensor = (q @ k.mT / math.sqrt(q.shape[-1]))[0]
        if design.positions == "alibi":
            logits = logits + bias_of_logits(design.context, design.n_heads, alibi=True, window=0, is_causal=False)
    return logits


def _products(seed: int, dtype: torch.dtype) -> Tensor:
    """Return the products of one query and one key, turned to all pairs of positions."""
    q, k = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return rotary(q.expand(LENGTH, -1)) @ rotary(k.expand(LENGTH, -1)).mT


def _change_of_norm(seed: int) -> float:
    x = torch.randn(LENGTH, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return float((rotary(x).norm(dim=-1) / x.norm(dim=-1) - 1).abs().max())


EXPERIMENT = Experiment(
    "positions",
    "None, learned, sinusoidal, rotary or ALiBi: whose attention sees distances alone, and does training differ?",
    "Su et al. 2021 (RoFormer); Press et al. 2021",
    (8.0, 1.0),
    carry_out,
)
