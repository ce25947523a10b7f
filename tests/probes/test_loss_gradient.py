"""The scale of the loss, from the gradient of the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.discovery import discover
from rheoscope.probes.loss_gradient import loss_gradient
from rheoscope.probes.untouched import untouched
from torch import Tensor
from torch.nn import functional

IDS = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(0))


def entropy(logits: Tensor, **given: Any) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten(), **given)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda logits: entropy(logits), 1.0),
        (lambda logits: 1000 * entropy(logits), 1000.0),
        (lambda logits: 1e-3 * entropy(logits), 1e-3),
        (lambda logits: -entropy(logits), -1.0),
        (lambda logits: entropy(logits, reduction="sum"), 14.0),
        (lambda logits: entropy(logits, label_smoothing=0.1), None),
        (lambda logits: entropy(logits) + 1e-2 * logits.logsumexp(-1).square().mean(), None),
    ],
)
def test_the_scale_of_a_cross_entropy_is_read_and_of_nothing_else(loss: Any, expected: float | None) -> None:
    torch.manual_seed(0)
    model = NanoGPT("pre")
    anatomy = discover(model, IDS)
    with untouched(model, training=False):
        rows = loss_gradient(model, IDS, anatomy, loss)
    assert [row["observed"] for row in rows] == ([] if expected is None else [pytest.approx(expected, rel=1e-4)])
