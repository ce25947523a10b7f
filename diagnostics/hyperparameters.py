"""Set a model's hyperparameters beside those of published models: a remark where one is outside, never an alarm.

``published_models.csv`` holds what is public of 39 language models, 2017 to 2026: the table of Stanford CS336 (spring 2026),
lecture 3, slides 38 to 51, and the ratios of head width of its slide 41. ``mlp_ratio`` is d_ff over the width of the stream,
``aspect`` that width over the number of blocks, ``head_ratio`` heads times head size over it. What a report leaves open is empty.
The table's columns of tricks and of norm placement are left out: two of their cells are doubtful (a QK-norm of LLaMA 65B, and
where Gemma 2 has its norms).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from statistics import median

import pandas as pd
from rheoscope.probes.anatomy import Stack

from .finding import Evidence, Finding
from .frames import records
from .tables import Tables
from .thresholds import USUAL_ASPECT, USUAL_DROPOUT, USUAL_HEADS, USUAL_MLP, USUAL_MLP_GATED, USUAL_WEIGHT_DECAY

COLUMNS = [
    "stack",
    "quantity",
    "here",
    "usual_low",
    "usual_high",
    "published_median",
    "lowest",
    "highest",
    "n_models",
    "why",
]
_WHY = {
    "mlp_ratio": "Kaplan et al. 2020, section 3.1: the loss rises by less than 1 % between ratios of 0.5 and 4, by 8 % at 50.",
    "aspect": "Kaplan et al. 2020, section 3.1: the loss is flat over widths of 10 to 330 a block.",
    "head_ratio": "Heads that share the width have a ratio of 1; few models widen them.",
    "vocabulary": "30,000 to 50,000 tokens for one language, 100,000 to 250,000 for many.",
    "dropout": "Models that see their data once use none; older ones 0.1.",
    "weight_decay": "0.1 where it is published; some exempt the embedding.",
}
_CODES = {"mlp_ratio": "d_ff / width", "aspect": "width / blocks", "head_ratio": "heads x head size / width"}


@cache
def published_models() -> pd.DataFrame:
    """Return one row a published model: its name and year, and what is public of its sizes and settings."""
    with files("rheoscope.diagnostics").joinpath("published_models.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def beside_published(tables: Tables) -> pd.DataFrame:
    """Return one row a stack and hyperparameter that is known: stack, quantity, here, usual range, what is published, why.

    ``published_median``, ``lowest`` and ``highest`` are over ``n_models`` models; for an MLP over those that are gated, or not,
    as this one is.
    """
    rows = []
    for stack in tables.anatomy.stacks:
        for quantity, value in _values(tables, stack):
            known = _published(quantity, is_gated=_is_gated(stack))
            low, high = _usual(quantity, is_gated=_is_gated(stack))
            rows.append(
                [
                    stack.index,
                    quantity,
                    value,
                    low,
                    high,
                    *(known.median(), known.min(), known.max()),
                    len(known),
                    _WHY[quantity],
                ]
            )
    return pd.DataFrame(rows, columns=COLUMNS)


def hyperparameters(tables: Tables) -> list[Finding]:
    """Remark on hyperparameters outside what is usual."""
    rows = beside_published(tables)
    return [
        _finding(tables, row)
        for row in records(rows)
        if row["here"] < row["usual_low"] * (1 - 1e-9) or row["here"] > row["usual_high"] * (1 + 1e-9)
    ]


def _values(tables: Tables, stack: Stack) -> Iterator[tuple[str, float]]:
    hidden = [b.hidden.width for b in stack.branches if b.hidden is not None and b.hidden.width and b.kind == "mlp"]
    heads = [
        b.attention.n_heads * b.attention.head_size
        for b in stack.branches
        if b.attention is not None and b.attention.n_heads and b.attention.head_size
    ]
    if stack.width:
        if hidden:
            yield "mlp_ratio", median(hidden) / stack.width
        if stack.n_blocks:
            yield "aspect", stack.width / stack.n_blocks
        if heads:
            yield "head_ratio", median(heads) / stack.width
    if stack.index == len(tables.anatomy.stacks) - 1:
        yield from _of_the_model(tables)


def _of_the_model(tables: Tables) -> Iterator[tuple[str, float]]:
    anatomy = tables.anatomy
    if anatomy.vocabulary:
        yield "vocabulary", float(anatomy.vocabulary)
    if anatomy.branches:
        yield "dropout", max(anatomy.dropout, default=0.0)
    groups = tables.recording.table("groups", columns=["step", "weight_decay"]).dropna()
    if len(groups):
        yield "weight_decay", float(groups.loc[groups["step"] == groups["step"].max(), "weight_decay"].max())


def _is_gated(stack: Stack) -> bool:
    return any(b.hidden is not None and bool(b.hidden.is_gated) for b in stack.branches)


def _published(quantity: str, *, is_gated: bool) -> pd.Series:
    models = published_models()
    if quantity == "mlp_ratio":
        models = models[models["activation"].str.endswith("GLU") == is_gated]
    return models[quantity].dropna()


def _usual(quantity: str, *, is_gated: bool) -> tuple[float, float]:
    ranges = {
        "mlp_ratio": USUAL_MLP_GATED if is_gated else USUAL_MLP,
        "aspect": USUAL_ASPECT,
        "head_ratio": USUAL_HEADS,
        "vocabulary": (0.0, float("inf")),  # a matter of the text, not of the model
        "dropout": USUAL_DROPOUT,
        "weight_decay": USUAL_WEIGHT_DECAY,
    }
    return ranges[quantity]


def _finding(tables: Tables, row: dict[str, object]) -> Finding:
    low, high, here, stack = (float(str(row[name])) for name in ("usual_low", "usual_high", "here", "stack"))
    quantity = str(row["quantity"])
    name = _CODES.get(quantity, quantity.replace("_", " "))
    where = tables.stack_name(int(stack)) if quantity in _CODES else ""
    return Finding(
        code="hyperparameter",
        severity="info",
        confidence=0.5,
        block=None,
        stack=int(stack),
        component=quantity,
        module_path="",
        step=0,
        sentence=f"{name[0].upper()}{name[1:]}{where} is {here:.3g}; usual is {low:.3g} to {high:.3g}, "
        f"and {row['n_models']} published models have {float(str(row['lowest'])):.3g} to {float(str(row['highest'])):.3g}.",
        evidence=Evidence(name, here, float(str(row["published_median"])), "median of published models"),
        remedy="None needed.",
        reference=str(row["why"]),
    )
