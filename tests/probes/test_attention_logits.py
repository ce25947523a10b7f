"""Logits computed again are those of the call: their softmax times the values is what the kernel returned."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from attention_oracle import assert_rows, reference
from rheoscope.probes.attention import AttentionCalls
from rheoscope.probes.attention_logits import chosen_queries, n_chosen, of_dot_products, of_modified_scores, of_softmax
from rheoscope.probes.attention_statistics import HIDDEN, head_sums, statistics, together
from rheoscope.probes.scratch import Scratch
from torch import Tensor
from torch.nn import functional

BATCH, N_HEADS, N_QUERIES, N_KEYS, SIZE = 2, 4, 7, 9, 8


def tensors(n_shared: int = N_HEADS, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (BATCH, N_HEADS, N_QUERIES), (BATCH, n_shared, N_KEYS), (BATCH, n_shared, N_KEYS)
    q, k, v = (2 * torch.randn(*shape, SIZE) for shape in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def keep(*shape: int) -> Tensor:
    mask = torch.rand(*shape) < 0.6
    mask[..., 2] = True
    return mask


MASKS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "causal": {"is_causal": True},
    "scale": {"scale": 0.3},
    "a mask of queries and keys": {"attn_mask": keep(N_QUERIES, N_KEYS)},
    "a mask of sequences": {"attn_mask": keep(BATCH, 1, 1, N_KEYS)},
    "a mask of heads": {"attn_mask": keep(BATCH, N_HEADS, N_QUERIES, N_KEYS)},
    "a bias": {"attn_mask": torch.linspace(-2, 2, N_QUERIES * N_KEYS).view(1, N_QUERIES, N_KEYS)},
    "minus infinity": {"attn_mask": torch.zeros(N_QUERIES, N_KEYS).masked_fill(~keep(N_QUERIES, N_KEYS), -math.inf)},
    "large negative numbers": {"attn_mask": -1e9 * (~keep(BATCH, 1, N_QUERIES, N_KEYS)).float()},
    "the smallest number": {"attn_mask": torch.finfo(torch.float32).min * (~keep(BATCH, 1, N_QUERIES, N_KEYS)).float()},
}


@pytest.mark.parametrize("n_shared", [N_HEADS, 2, 1])
@pytest.mark.parametrize("name", MASKS)
def test_the_softmax_of_the_logits_is_what_the_fused_kernel_weighs_by(name: str, n_shared: int) -> None:
    q, k, v = tensors(n_shared)
    options = dict(MASKS[name])
    expected = functional.scaled_dot_product_attention(q, k, v, enable_gqa=n_shared < N_HEADS, **options)

    mask, is_causal, scale = (options.get(key) for key in ("attn_mask", "is_causal", "scale"))
    logits = of_dot_products(q, k, mask, bool(is_causal), scale)

    out = logits.values.softmax(-1) @ v.repeat_interleave(N_HEADS // n_shared, 1)
    assert torch.allclose(out, expected, atol=1e-5)
    hidden = None if logits.visible is None else logits.visible == 0
    sums = head_sums(logits.values.clone(), logits.visible)
    assert_rows([statistics(row) for row in sums.tolist()], reference(logits.values, hidden))


def test_flexible_attention_weighs_by_its_modified_scores() -> None:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, k, v = (torch.randn(1, 4, 128, 16), torch.randn(1, 2, 128, 16), torch.randn(1, 2, 128, 16))
    slopes = torch.tensor([0.1, 0.2, 0.3, 0.4])

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return 3 * torch.tanh(score / 3) + slopes[h] * (j - i)

    def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < 20)

    block_mask = create_block_mask(mask_mod, None, None, 128, 128, device="cpu")
    with torch.compiler.set_stance("force_eager"), pytest.warns(UserWarning, match="flex_attention called"):
        out = flex_attention(q, k, v, score_mod=score_mod, block_mask=block_mask, enable_gqa=True)

    logits = of_modified_scores(q, k, score_mod, mask_mod, 0.25)

    weighed = logits.values.softmax(-1) @ v.repeat_interleave(2, 1)
    assert torch.allclose(weighed, out[:, :, chosen_queries(128)], atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 16, 17, 63, 64, 100, 255, 256, 1000, 4096])
def test_measured_queries_are_few_evenly_spaced_and_end_with_the_last(n: int) -> None:
    positions = list(range(n))[chosen_queries(n)]

    assert positions[-1] == n - 1
    assert len(positions) == n_chosen(n)
    assert min(n, 8) <= len(positions) <= 64
    assert len({b - a for a, b in itertools.pairwise(positions)}) <= 1


def test_a_softmax_by_hand_hides_by_size_and_leaves_its_logits() -> None:
    values = torch.randn(1, 2, 3, 5).masked_fill(~keep(3, 5), -1e4)
    copied = values.clone()

    logits = of_softmax(values)

    head_sums(logits.values, logits.visible)
    assert torch.equal(values, copied)
    assert torch.equal(logits.visible == 0, copied == -1e4)


def test_uniform_logits_have_all_the_entropy_there_is() -> None:
    found = statistics(head_sums(torch.full((2, 1, 3, 8), 5.0), None)[0].tolist())

    expected = {"logit_max": 5.0, "logit_std": 0.0, "entropy": math.log(8), "entropy_ratio": 1.0, "sink_share": 0.125}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_logits_far_apart_are_measured_and_do_not_underflow_into_nan() -> None:
    logits = torch.tensor([0.0, -500.0, 1000.0, 900.0]).view(1, 1, 1, 4)

    found = [statistics(head_sums(logits.clone(), None)[0].tolist())]

    assert_rows(found, reference(logits, None))


def test_queries_that_see_nothing_do_not_count_and_a_call_that_shows_nothing_is_unknown() -> None:
    logits, visible = torch.randn(1, 1, 3, 4), torch.ones(1, 1, 3, 4)
    visible[..., 1, :] = 0.0
    given = logits.clone() + (1 - visible) * HIDDEN

    some = statistics(head_sums(given, visible)[0].tolist())
    none = statistics(head_sums(torch.full((1, 1, 3, 4), HIDDEN), torch.zeros(1, 1, 3, 4))[0].tolist())

    assert_rows([some], reference(logits, visible == 0))
    assert set(none.values()) == {None}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_unknown(value: float) -> None:
    logits = torch.randn(1, 1, 3, 4)
    logits[0, 0, 1, 2] = value

    found = statistics(head_sums(logits, None)[0].tolist())

    assert (found["logit_max"], found["entropy"], found["logit_std"]) == (None, None, None)


def test_a_batch_in_parts_is_measured_as_one_in_reused_memory() -> None:
    q, k, _ = tensors()
    scratch = Scratch()
    parts = []
    for index in range(BATCH):
        logits = of_dot_products(q[index : index + 1], k[index : index + 1], None, True, None, scratch)
        parts.append(head_sums(logits.values, logits.visible, scratch))
    whole = of_dot_products(q, k, None, True)

    assert torch.allclose(together(parts), head_sums(whole.values, whole.visible), equal_nan=True, rtol=1e-5)


def test_a_large_batch_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    import rheoscope as rs
    from rheoscope.probes import attention
    from rheoscope.probes.running import Moment

    q, k, v = tensors()
    mask = keep(BATCH, 1, N_QUERIES, N_KEYS)
    found = []
    for most in (2**20, 1):
        monkeypatch.setattr(attention, "_MOST_LOGITS", most)
        calls = AttentionCalls(rs.Anatomy())
        calls.before[functional.scaled_dot_product_attention](q, k, v, attn_mask=mask)(Moment("", 0))
        found.append(calls.rows())

    names = ("logit_max", "logit_std", "entropy", "entropy_ratio", "sink_share", "n_queries", "query_share")
    for one, other in zip(*found, strict=True):
        assert [one[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5)
