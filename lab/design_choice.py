"""Compare the values of one design choice: train each at its own best learning rate, and say how far they lie apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from .architecture import Architecture
from .experiment import Claim, Setting
from .intervals import over_seeds
from .learning_rates import gaps, swept
from .run import Run
from .transformer import ReferenceTransformer

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# Task -> how long until something is learned; where the best rate lies at this size, and one on each side of it.
STEPS, STEPS_QUICK = 500, {"recall": 200, "text": 120}
RATES_QUICK = {"recall": (1e-2, 3e-2, 1e-1), "text": (3e-3, 1e-2, 3e-2)}


def small(setting: Setting, **changes: Any) -> Architecture:
    """Return the transformer that the lab's choices are tried on, with ``changes``: for the tasks of 64 tokens."""
    base = Architecture(2 if setting.is_quick else 4, 64, 4, vocabulary=64, context=48, embedding_std=1.0)
    return replace(base, **changes)


def small_for_text(setting: Setting, **changes: Any) -> Architecture:
    """Return the same for the task text."""
    return small(setting, vocabulary=256, **changes)


def small_run(design: Architecture, setting: Setting, **changes: Any) -> Run:
    """Return a run that is long enough for ``small`` to learn, with ``changes``; its learning rate is to be replaced."""
    n_steps = STEPS_QUICK[changes.get("task", "recall")] if setting.is_quick else STEPS
    return replace(Run(design, lr=1e-3, n_steps=n_steps, warm_up=20, cosine=True), **changes)


def trained(designs: Mapping[str, Architecture], setting: Setting, **changes: Any) -> pd.DataFrame:
    """Train every design at every learning rate and seed.

    Args:
        designs: label -> architecture.
        setting: which says the size, the seeds and the executor.
        changes: fields of the runs.

    Returns:
        The rows of ``swept``.
    """
    runs = {label: small_run(design, setting, **changes) for label, design in designs.items()}
    return swept(runs, RATES_QUICK[changes.get("task", "recall")] if setting.is_quick else RATES, setting)


def gap(
    frame: pd.DataFrame,
    a: str,
    b: str,
    published: str,
    source: str,
    agrees: tuple[float, float] | None = None,
    *,
    by: str = "last_loss",
) -> Claim:
    """Return the claim on how far ``a`` ends above ``b``, each at its own best learning rate."""
    what = "held-out" if by == "held_out_loss" else "last"
    return Claim(
        f"{what} loss of {a} less {b}, each at its best rate, nats",
        over_seeds(gaps(frame, a, b, by)),
        published,
        source,
        agrees,
    )


def n_parameters(design: Architecture, *, of_blocks: bool = False) -> int:
    """Return how many parameters a design has, or its blocks alone."""
    model = ReferenceTransformer(design)
    return sum(p.numel() for p in (model.blocks if of_blocks else model).parameters())


def as_large_as(reference: Architecture, design: Architecture) -> Architecture:
    """Return ``design`` with the width of its MLPs at which its blocks have as many parameters as the reference's, or nearly."""
    wanted, had = n_parameters(reference, of_blocks=True), n_parameters(design, of_blocks=True)
    wider = replace(design, mlp_width=design.hidden + 1)
    a_unit = n_parameters(wider, of_blocks=True) - had
    return replace(design, mlp_width=max(1, design.hidden + round((wanted - had) / a_unit)))
