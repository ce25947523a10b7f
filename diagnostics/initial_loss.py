"""Diagnose a loss that is far above that of guessing: of a fresh model, which has learned nothing yet, and of any other."""

from __future__ import annotations

import math

from .finding import Evidence, Finding
from .freshness import is_fresh
from .tables import Tables
from .thresholds import INITIAL_LOSS_ABOVE, LOSS_OF_GUESSES


def initial_loss(tables: Tables) -> list[Finding]:
    """Report a first loss far above ln V where norms and biases show that the model is fresh from its init.

    A head of std s over normed features of width d makes logits of variance d s^2, and a loss of ln V + d s^2 / 2.
    """
    first = _first_loss(tables)
    if first is None or not is_fresh(tables, 0):
        return []
    (loss, step), expected = first, math.log(tables.anatomy.vocabulary)
    if not loss > expected + INITIAL_LOSS_ABOVE:
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
            sentence=f"The first loss is {loss:.3g}, that of guessing among {tables.anatomy.vocabulary:,} tokens "
            f"{expected:.3g}: the fresh model is sure of wrong answers.",
            evidence=Evidence(
                "first loss", loss, expected, "ln V, and half the variance of the logits", INITIAL_LOSS_ABOVE
            ),
            remedy="Look at the init of the head, and of the embedding where the two are tied.",
        )
    ]


def worse_than_guessing(tables: Tables) -> list[Finding]:
    """Report a trained model whose loss is as if it gave the right token less than the square of its chance.

    It is not unsure, as on text of another kind: it is sure, and wrong. Loss over ln V is then far above 1.
    """
    first = _first_loss(tables)
    if first is None or is_fresh(tables, 0):
        return []
    (loss, step), guess = first, math.log(tables.anatomy.vocabulary)
    if not loss > LOSS_OF_GUESSES * guess:
        return []
    return [
        Finding(
            code="worse-than-guessing",
            severity="warning",
            confidence=0.8,
            block=None,
            component="output",
            module_path="",
            step=step,
            sentence=f"The loss is {loss:.3g}, {loss / guess:.2g} times that of guessing among "
            f"{tables.anatomy.vocabulary:,} tokens ({guess:.3g}): the model is sure of wrong answers.",
            evidence=Evidence("loss", loss, guess, "ln V, the loss of even chances", (LOSS_OF_GUESSES - 1) * guess),
            remedy="Look at the scale of the logits (the head, the final norm), at the labels, and at whether ids and vocabulary "
            "belong to this model.",
        )
    ]


def _first_loss(tables: Tables) -> tuple[float, int] | None:
    """Return loss and step where a check-up proved a mean cross-entropy: of another loss nothing is known."""
    losses, scale = tables.losses.dropna(subset=["loss"]), tables.identity("loss_scale")
    if tables.anatomy.vocabulary < 2 or not len(losses) or scale is None or abs(scale - 1) > 0.01:
        return None
    step = int(losses["step"].iloc[0])
    return (float(losses["loss"].iloc[0]), step) if step == 0 else None
