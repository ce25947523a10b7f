"""Slow ways to attention statistics: every query on its own, in float64, from logits that the test itself knows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rheoscope as rs
import torch
from rheoscope.probes.batches import Arguments
from rheoscope.probes.function_taps import FunctionTaps
from torch import Tensor, nn

NAMES = ("logit_max", "logit_std", "entropy", "entropy_ratio", "sink_share")
Seen = list[tuple[nn.Module, Tensor, Tensor]]


def reference(logits: Tensor, hidden: Tensor | None) -> list[dict[str, float]]:
    """Return the statistics of each head, from logits of shape (batch, heads, queries, keys), query by query."""
    logits = logits.detach().double()
    seen = torch.ones_like(logits, dtype=torch.bool) if hidden is None else ~hidden.expand(logits.shape)
    found = []
    for head in range(logits.shape[1]):
        rows: dict[str, list[float]] = {name: [] for name in NAMES[1:]}
        largest = -math.inf
        for sequence in range(logits.shape[0]):
            for query in range(logits.shape[2]):
                mine = seen[sequence, head, query]
                values = logits[sequence, head, query][mine]
                if len(values):
                    largest = max(largest, float(values.max()))
                if len(values) > 1:
                    shares = values.softmax(0)
                    entropy = -float((shares * shares.log()).nan_to_num().sum())
                    rows["logit_std"].append(float(values.std(correction=0)))
                    rows["entropy"].append(entropy)
                    rows["entropy_ratio"].append(entropy / math.log(len(values)))
                    rows["sink_share"].append(float(shares[0]) if mine[0] else 0.0)
        found.append({"logit_max": largest} | {name: sum(values) / len(values) for name, values in rows.items()})
    return found


def measured(model: nn.Module, batch: dict[str, Any], anatomy: Any = None, **options: Any) -> list[dict[str, Any]]:
    """Return the rows of the attention table of one forward of ``model``, as it is."""
    anatomy = rs.discover(model, batch) if anatomy is None else anatomy
    taps = FunctionTaps(model, anatomy, **options)
    with taps.watching(Arguments((), batch)):
        model(**batch)
    return taps.take()["attention"]


def assert_rows(rows: list[dict[str, Any]], expected: list[dict[str, float]], tolerance: float = 1e-4) -> None:
    """Assert that each row holds the expected statistics, to a share of each and as much absolutely."""
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        got = {name: row[name] for name in NAMES}
        assert got == pytest.approx(wanted, rel=tolerance, abs=tolerance)


@contextmanager
def recorded_interface() -> Iterator[Seen]:
    """Register "oracle" with Hugging Face's attention interface: it keeps (module, logits, hidden) of every call."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    seen: Seen = []

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        position_bias: Tensor | None = None,
        is_causal: bool | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
        logits = query.double() @ key.double().mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        if position_bias is not None:
            logits = logits + position_bias
        hidden = torch.zeros_like(logits, dtype=torch.bool)
        if attention_mask is not None:
            hidden |= attention_mask < -1
        elif is_causal if is_causal is not None else getattr(module, "is_causal", False):
            hidden |= torch.ones(hidden.shape[-2:], dtype=torch.bool).triu(1)
        seen.append((module, logits, hidden))
        shares = logits.masked_fill(hidden, torch.finfo(torch.float64).min).softmax(-1).to(value.dtype)
        return (shares @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("oracle", attention)
    AttentionMaskInterface.register("oracle", eager_mask)
    yield seen
