"""Diagnose the loss of a model that has learned nothing yet: close to that of guessing."""

from __future__ import annotations

import math

from .finding import Evidence, Finding
from .freshness import is_fresh
from .tables import Tables
from .thresholds import INITIAL_LOSS_ABOVE


def initial_loss(tables: Tables) -> list[Finding]:
    """Report a first loss far above ln V where norms and biases show that the model is fresh from its init.

    A head of std s over normed features of width d makes logits of variance d s^2, and a loss of ln V + d s^2 / 2.
    """
    vocabulary = tables.anatomy.vocabulary
    losses = tables.losses.dropna(subset=["loss"])
    if vocabulary < 2 or not len(losses) or not is_fresh(tables, 0):
        return []
    loss, step = float(losses["loss"].iloc[0]), int(losses["step"].iloc[0])
    expected = math.log(vocabulary)
    # Of another loss, or one that is scaled, nothing is known.
    scale = tables.identity("loss_scale")
    if step != 0 or scale is None or abs(scale - 1) > 0.01 or not loss > expected + INITIAL_LOSS_ABOVE:
        return []
    return [
        Finding(
            code="initial-loss",
            severity="warning",
            confidence=0.9,
            block=None,
            component="output",
            module_path="",
            step=step,
            sentence=f"The first loss is {loss:.3g}, that of guessing among {vocabulary:,} tokens {expected:.3g}: the fresh "
            "model is sure of wrong answers.",
            evidence=Evidence(
                "first loss", loss, expected, "ln V, and half the variance of the logits", INITIAL_LOSS_ABOVE
            ),
            remedy="Look at the init of the head, and of the embedding where the two are tied.",
        )
    ]
