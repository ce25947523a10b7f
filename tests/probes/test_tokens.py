"""Token statistics equal pairwise float64 ones, and keep nothing alive."""

from __future__ import annotations

import gc
import math
import weakref
from functools import partial
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import LENGTH, WIDTH, NanoGPT, batch_of, captured, gpt2, llama
from rheoscope.probes.anatomy import Anatomy, Branch, Point, Stack
from rheoscope.probes.hooked import Hooked
from rheoscope.probes.kernels import by_c
from rheoscope.probes.token_sums import (
    MOST_TOKENS,
    angle_sums,
    chosen_tokens,
    cosine_sums,
    inverse_sizes,
    sums_by_kernel,
    sums_by_torch,
)
from rheoscope.probes.tokens import TokenTaps
from torch import Tensor, nn

IDS = {"GPT-2": (gpt2, "transformer.h.{}.ln_1", "transformer.h.{}.ln_2", "transformer.ln_f")}
LLAMA_BLOCK = ("model.layers.{}.input_layernorm", "model.layers.{}.post_attention_layernorm", "model.norm")
MODELS = {**IDS, "Llama": (llama, *LLAMA_BLOCK), "nanoGPT": (NanoGPT, "blocks.{}.norm_1", "blocks.{}.norm_2", "norm")}


def mean_cosine(state: Tensor, mask: Tensor | None = None) -> float:
    """Return the mean over sequences of the mean over all pairs of different tokens, in float64."""
    found = []
    for index, tokens in enumerate(state.detach().double()):
        kept = tokens if mask is None else tokens[mask[index]]
        cosines = nn.functional.cosine_similarity(kept[:, None], kept[None], dim=-1)
        n = len(kept)
        if n > 1:
            found.append(float(cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
    return sum(found) / len(found)


def mean_angle(state: Tensor, before: Tensor, mask: Tensor | None = None) -> float:
    """Return the mean over tokens of arccos(cosine) / pi, in float64."""
    cosines = nn.functional.cosine_similarity(state.detach().double(), before.detach().double(), dim=-1)
    angles = cosines.clamp(-1, 1).arccos() / math.pi
    return float((angles if mask is None else angles[mask]).mean())


def measured(model: nn.Module, mask: Tensor | None = None) -> list[dict[str, Any]]:
    taps = TokenTaps(rs.discover(model, batch_of(model)))
    hooked = Hooked(model, taps.points, lambda point: partial(taps.see, point))
    taps.begin(0, None if mask is None else {0: mask})
    model(**batch_of(model))
    taps.end()
    hooked.remove()
    return taps.rows()


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_a_pairwise_reference(name: str, is_masked: bool) -> None:
    make, one, two, last = MODELS[name]
    model = make()
    places = [(path.format(block), "in") for block in range(2) for path in (one, two)] + [(last, "in")]
    states, _ = captured(model, places, batch_of(model))
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 5:] = 0
    kept = mask.bool() if is_masked else None

    rows = measured(model, mask if is_masked else None)

    assert [row["cosine"] for row in rows] == pytest.approx([mean_cosine(s, kept) for s in states], abs=1e-6)
    angles = [row["angular_distance"] for row in rows]
    expected = [mean_angle(states[2], states[0], kept), mean_angle(states[4], states[2], kept)]
    assert [angles[0], angles[1], angles[3]] == [None] * 3
    assert [angles[2], angles[4]] == pytest.approx(expected, rel=1e-4)
    assert [row["depth"] for row in rows] == [0, 1, 2, 3, 4]


def test_a_stream_that_is_added_to_in_place_is_measured_from_the_second_forward_on() -> None:
    points = [Point(f"block.{n}", "output", ()) for n in range(4)]
    blocks = [Branch(0, n, n + 1, "mlp", "pre", "layernorm", state=points[n + 1]) for n in range(3)]
    taps = TokenTaps(Anatomy((Stack(0, tuple(blocks), start=points[0]),)))
    parts = [torch.randn(2, 5, WIDTH) for _ in points]
    found = []
    for _ in range(2):
        taps.begin(0)
        state = torch.zeros(2, 5, WIDTH)
        for point, part in zip(points, parts, strict=True):
            state += part
            taps.see(point, state)
        taps.end()
        found.append([row["angular_distance"] for row in taps.rows()])

    sums = torch.stack(parts).cumsum(0)
    expected = [mean_angle(sums[n + 1], sums[n]) for n in range(3)]
    assert found[0][:2] == [None, None]
    assert found[1][1:] == pytest.approx(expected, rel=1e-5)


def test_small_angles_are_exact() -> None:
    state = torch.randn(2, 5, WIDTH)
    turned = state + 1e-4 * torch.randn_like(state)

    total, n = angle_sums(turned, inverse_sizes(turned), state, inverse_sizes(state)).tolist()

    assert total / n == pytest.approx(mean_angle(turned, state), rel=2e-3)
    assert n == 10


def test_opposite_tokens_are_half_a_turn_apart() -> None:
    state = torch.randn(2, 5, WIDTH, dtype=torch.float64)

    total, n = angle_sums(-state, inverse_sizes(state), state, inverse_sizes(state)).tolist()

    assert total / n == pytest.approx(1.0)


def test_equal_tokens_have_cosine_one_and_zero_tokens_do_not_count() -> None:
    state = torch.ones(1, 4, WIDTH)
    state[0, 1] = 0.0

    total, n = cosine_sums(state, inverse_sizes(state)).tolist()

    assert total / n == pytest.approx(1.0)


def test_a_sequence_of_one_token_has_no_cosine() -> None:
    state = torch.randn(3, 1, WIDTH)

    assert cosine_sums(state, inverse_sizes(state)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_float32(dtype: torch.dtype) -> None:
    state = (300 * torch.randn(2, 6, WIDTH)).to(dtype)

    total, n = cosine_sums(state, inverse_sizes(state)).tolist()

    assert total / n == pytest.approx(mean_cosine(state), abs=1e-5)


def test_a_state_that_is_not_finite_is_recorded_as_unknown() -> None:
    model = NanoGPT()
    with torch.no_grad():
        model.tokens.weight[30] = math.nan

    assert {row["cosine"] for row in measured(model)} == {None}


def test_no_state_outlives_its_use() -> None:
    model = NanoGPT()
    taps = TokenTaps(rs.discover(model, batch_of(model)))
    kept: list[weakref.ref[Tensor]] = []
    model.norm.register_forward_pre_hook(lambda m, args: kept.append(weakref.ref(args[0])))
    hooked = Hooked(model, taps.points, lambda point: partial(taps.see, point))
    taps.begin(0)
    loss = model(**batch_of(model))
    taps.end()

    del loss
    gc.collect()

    hooked.remove()
    assert [state() for state in kept] == [None]


def test_a_forward_that_failed_is_forgotten() -> None:
    model = NanoGPT()
    taps = TokenTaps(rs.discover(model, batch_of(model)))
    hooked = Hooked(model, taps.points, lambda point: partial(taps.see, point))
    taps.begin(0)
    model(**batch_of(model))
    taps.end(failed=True)

    hooked.remove()
    assert taps.rows() == []


def by_torch(state: Tensor, mask: Tensor | None, before: Tensor) -> list[float]:
    """Return the four sums by torch's operations alone."""
    inverse, there = inverse_sizes(state, mask), inverse_sizes(before, mask)
    return [*cosine_sums(state, inverse).tolist(), *angle_sums(state, inverse, before, there).tolist()]


def by_kernel(state: Tensor, mask: Tensor | None, before: Tensor) -> list[float]:
    """Return the four sums as the taps take them: in C where the package was built with it."""
    found = torch.empty(1, 4, dtype=torch.float64)
    if by_c.kernel is None:
        there = sums_by_torch(before, found, mask)
        sums_by_torch(state, found, mask, (before, there))
    else:
        chosen = chosen_tokens(*state.shape[:2])
        there = sums_by_kernel(before, chosen, found.data_ptr(), mask)
        sums_by_kernel(state, chosen, found.data_ptr(), mask, (before, there))
    return found[0].tolist()


@pytest.mark.parametrize("sums", [by_torch, by_kernel])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("shape", [(2, 5, 33), (3, 2, 7), (1, 9, 256), (2, 4, 5001), (2, 3, 1)])
def test_both_implementations_equal_pairs_in_float64(sums: Any, scale: float, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    before = scale * torch.randn(shape, generator=generator)
    state = before + scale * torch.randn(shape, generator=generator)
    mask = torch.ones(shape[:2], dtype=torch.bool)
    mask[0, -1] = shape[1] < 3

    for kept in (None, mask):
        cosines, n_sequences, angles, n_tokens = sums(state, kept, before)

        assert cosines / n_sequences == pytest.approx(mean_cosine(state / scale, kept), abs=2e-6)
        # arccos itself is known to 1e-8 where a token of one channel did not turn at all
        assert angles / n_tokens == pytest.approx(mean_angle(state / scale, before / scale, kept), rel=1e-5, abs=1e-7)
        assert n_tokens == (shape[0] * shape[1] if kept is None else int(kept.sum()))


@pytest.mark.parametrize("sums", [by_torch, by_kernel])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_zero_tokens_and_values_that_are_not_finite_agree(sums: Any, bad: float) -> None:
    state, before = torch.randn(2, 5, 33), torch.randn(2, 5, 33)
    state[0, 1] = 0.0
    before[1, 3] = 0.0

    assert sums(state, None, before)[3] == 8
    assert sums(state[:, :1], None, before[:, :1])[:2] == [0.0, 0.0]

    state[1, 2, 7] = bad
    assert math.isnan(sums(state, None, before)[0])


@pytest.mark.parametrize(
    "shape", [(4, 128, 24), (1, 1000, 24), (100, 3, 24), (300, 40, 8), (1, 7, 24), (0, 4, 8), (2, 0, 8)]
)
def test_of_many_tokens_some_are_looked_at_evenly_spread(shape: tuple[int, int, int]) -> None:
    chosen = chosen_tokens(*shape[:2])

    rows, columns = (range(n)[part] for n, part in zip(shape[:2], chosen[:2], strict=True))

    assert (chosen.n_sequences, chosen.n_tokens) == (len(rows), len(columns))
    assert len(rows) * len(columns) <= MOST_TOKENS
    if shape[0] * shape[1] <= MOST_TOKENS and shape[0] <= 16:
        assert (len(rows), len(columns)) == shape[:2]
    if shape[0] and shape[1]:
        assert columns[-1] == shape[1] - 1
        assert len(columns) >= min(shape[1], 8)


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_chosen_tokens_alone_are_measured(is_dense: bool, dtype: torch.dtype) -> None:
    points = [Point(f"block.{n}", "output", ()) for n in range(2)]
    block = Branch(0, 0, 1, "mlp", "pre", "layernorm", state=points[1])
    taps = TokenTaps(Anatomy((Stack(0, (block,), start=points[0]),)))
    states = [torch.randn(20, 70, WIDTH, dtype=dtype) for _ in points]
    if not is_dense:
        states = [state.transpose(0, 1).contiguous().transpose(0, 1) for state in states]
    mask = torch.rand(20, 70) < 0.8
    chosen = chosen_tokens(20, 70)[:2]
    taps.begin(0, None if mask is None else {0: mask})

    for point, state in zip(points, states, strict=True):
        taps.see(point, state)
    first, second = taps.rows()

    before, after = (state[chosen] for state in states)
    assert first["cosine"] == pytest.approx(mean_cosine(before, mask[chosen]), abs=1e-6)
    assert second["cosine"] == pytest.approx(mean_cosine(after, mask[chosen]), abs=1e-6)
    assert second["angular_distance"] == pytest.approx(mean_angle(after, before, mask[chosen]), rel=1e-5)
