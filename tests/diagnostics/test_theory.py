"""The closed forms against special cases that a hand can compute; ``test_init_theory`` measures transformers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rheoscope.diagnostics.soft_attention import Attention, Sight, attended, attended_back, softmax
from rheoscope.diagnostics.theory import Add, Mlp, Stream, predict

ATTENTION = Attention(gain=0.5)
MLP = Mlp(input_gain=1.0, output_gain=1.0, activation="relu")


def stream(placement: str = "pre", n_blocks: int = 3, mlp: Mlp = MLP, logits_std: float = 0.0, **rest: Any) -> Stream:
    """Return blocks of an attention and an MLP, 16 tokens of unit energy."""
    attention = replace(ATTENTION, logits_std=logits_std)
    adds = [Add((branch,), placement) for _ in range(n_blocks) for branch in (attention, mlp)]
    return Stream(tuple(adds), **{"n_tokens": 16, "energy": 1.0} | rest)


def test_double_norm_adds_exactly_one_a_branch() -> None:
    predicted = predict(stream("double"))

    assert predicted["rms"].to_list() == pytest.approx([(1 + depth) ** 0.5 for depth in range(7)])


def test_post_norm_keeps_every_state_but_the_first_at_one() -> None:
    predicted = predict(stream("post", energy=0.01))

    assert predicted["rms"].to_list() == pytest.approx([0.1, *[1.0] * 6])


@pytest.mark.parametrize("placement", ["pre", "double", "reordered"])
def test_the_skip_path_is_whole_where_no_norm_stands_on_it(placement: str) -> None:
    assert set(predict(stream(placement))["transmission"]) == {1.0}


def test_one_token_under_post_norm_passes_the_product_of_the_norms_gains() -> None:
    # Alone, a token attends to itself: its branch adds G_a = .5 to a unit state; ReLU's adds f s^2 E[relu^2] = .5.
    predicted = predict(stream("post", n_tokens=1))

    assert predicted["transmission"].to_list() == pytest.approx([1.5 ** (-(6 - depth) / 2) for depth in range(7)])


def test_one_token_of_a_relu_pre_norm_stack_has_gradient_times_state_constant() -> None:
    # B = b for a branch homogeneous of degree 1, hence g_in / g_out = 1 + b / q = q_out / q_in.
    predicted = predict(stream(n_tokens=1))

    assert np.ptp(predicted["gradient"] * predicted["rms"]) == pytest.approx(0, abs=1e-12)


def test_a_token_alone_has_nothing_for_the_softmax_to_choose_from() -> None:
    with_logits = predict(stream(n_tokens=1, logits_std=1.0))

    assert with_logits.equals(predict(stream(n_tokens=1)))


def test_the_last_state_is_where_gradient_and_transmission_are_one() -> None:
    last = predict(stream("post")).iloc[-1]

    assert (last["gradient"], last["transmission"]) == (1.0, 1.0)


def test_eps_beside_a_tiny_branch_takes_its_share() -> None:
    # Output-normed branches add b / (b + eps): half, where both are equal.
    tiny = stream("reordered", n_tokens=1, n_blocks=1, energy=1e-6, norm_eps=0.5e-6)

    assert predict(tiny)["rms"].iloc[1] ** 2 == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (stream("sideways"), "Expected a placement among"),
        (stream(mlp=replace(MLP, activation="softmax")), "Expected an activation among"),
        (stream(energy=0.0), "Expected positive sizes and gains"),
        (stream(energy=float("nan")), "Expected positive sizes and gains"),
        (stream(cosine=1.5), "Expected positive sizes and gains"),
        (stream(n_blocks=2000), "Expected positive sizes and gains"),
        (stream(logits_std=2.0), "Expected attention logits of variance below 1.2"),
        (stream("none", 500, replace(MLP, output_gain=1e6)), "overflows"),
    ],
)
def test_a_start_outside_the_assumptions_is_refused(start: Stream, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predict(start)


def test_reordered_norms_over_unnormed_logits_are_refused_where_they_grow_with_depth() -> None:
    # Without a norm on what attention reads, its logits grow with the stream: 25 at Xavier init after 12 blocks.
    with pytest.raises(ValueError, match="attention logits"):
        predict(stream("reordered", n_blocks=12, logits_std=1.0))


def test_logits_behind_a_qk_norm_do_not_grow_with_the_stream() -> None:
    normed = Add((replace(ATTENTION, logits_std=1.0, is_qk_normed=True),), "reordered")

    predicted = predict(Stream((normed,) * 30, n_tokens=16, energy=1.0))

    assert predicted["rms"].iloc[-1] == pytest.approx(31**0.5)
    assert predicted["logit_variance"].max() <= 1.0 + 1e-12


def test_parallel_branches_of_one_add_bring_both_their_energies() -> None:
    # One token: attention adds .5 of its input's energy and ReLU's MLP .5, to a stream that each block norms first.
    together = Add((ATTENTION, MLP), "pre")

    predicted = predict(Stream((together,) * 3, n_tokens=1, energy=1.0))

    assert (predicted["rms"] ** 2).to_list() == pytest.approx([1.0, 2.0, 3.0, 4.0])


def test_a_second_parallel_add_that_reads_two_below_gives_what_one_add_of_both_gives() -> None:
    one = predict(Stream((Add((ATTENTION, MLP), "pre"),) * 2, n_tokens=8, energy=1.0))
    two = predict(Stream((Add((ATTENTION,), "pre"), Add((MLP,), "pre", reads=2)) * 2, n_tokens=8, energy=1.0))

    assert two["rms"][::2].to_list() == pytest.approx(one["rms"].to_list())
    assert two["gradient"][::2].to_list() == pytest.approx(one["gradient"].to_list())


def test_a_norm_free_stack_of_one_token_multiplies_by_its_gains() -> None:
    predicted = predict(stream("none", n_tokens=1))

    assert (predicted["rms"] ** 2).to_list() == pytest.approx([1.5**depth for depth in range(7)])
    assert (predicted["gradient"] ** 2).to_list() == pytest.approx([1.5 ** (6 - depth) for depth in range(7)])


def test_deepnorm_keeps_gradients_flat() -> None:
    # alpha^2 = (2N)^(1/2), and beta^4 = 1 / (8N) on both pairs of weights (Wang et al. 2022, DeepNet).
    n_blocks = 24
    alpha, shrink = (2 * n_blocks) ** 0.25, (8 * n_blocks) ** -0.5
    attention = Attention(gain=shrink**2)
    mlp = Mlp(input_gain=shrink, output_gain=shrink, activation="relu")
    adds = [Add((b,), "post", skip_scale=alpha) for _ in range(n_blocks) for b in (attention, mlp)]

    predicted = predict(Stream(tuple(adds), n_tokens=16, energy=1.0))

    assert predicted["gradient"][1:].max() / predicted["gradient"][1:].min() < 1.01


def test_pre_norm_over_scaled_residuals_does_not_depend_on_depth() -> None:
    energies = []
    for n_blocks in (6, 24):
        adds = [
            Add((replace(b, **{f: 1 / (2 * n_blocks)}),), "pre") for b, f in ((ATTENTION, "gain"), (MLP, "output_gain"))
        ]
        energies.append(predict(Stream(tuple(adds) * n_blocks, n_tokens=1, energy=1.0))["rms"].iloc[-1] ** 2)

    # A block adds G_a / 2N of attention and half of G_f / 2N of ReLU: 1 + 1/2 + 1/4.
    assert energies == pytest.approx([1.75, 1.75])


def test_the_head_gives_gradients_their_size() -> None:
    # s_h / N a coordinate behind the final norm, which divides by the last state's RMS.
    predicted = predict(stream(n_tokens=1, head_gradient=0.02 / 128, final_scale=1.0))

    assert predicted["gradient"].iloc[-1] == pytest.approx(0.02 / 128 / predicted["rms"].iloc[-1])


def test_tokens_that_are_all_alike_stay_alike() -> None:
    alike = predict(stream("pre", cosine=1.0))

    assert alike["rms"].to_list() == pytest.approx(predict(stream("pre", n_tokens=1))["rms"].to_list())


@pytest.mark.parametrize("is_causal", [True, False])
def test_running_sums_are_the_sums_over_what_is_seen(is_causal: bool) -> None:
    n, sight = 7, Sight(7, is_causal)
    visible = np.tril(np.ones((n, n))) if is_causal else np.ones((n, n))
    pairs = np.random.default_rng(0).normal(size=(n, n))

    np.testing.assert_allclose(sight.gathered(pairs), visible @ pairs @ visible.T)
    np.testing.assert_allclose(sight.scattered(pairs), visible.T @ pairs @ visible)
    np.testing.assert_allclose(sight.common, visible @ visible.T)
    np.testing.assert_allclose(sight.total(pairs[0]), visible @ pairs[0])


@pytest.mark.parametrize("is_causal", [True, False])
def test_uniform_attention_averages_what_is_seen_both_ways(is_causal: bool) -> None:
    n = 6
    average = np.tril(np.ones((n, n))) if is_causal else np.ones((n, n))
    average = average / average.sum(1, keepdims=True)
    root = np.random.default_rng(1).normal(size=(n, n))
    moments, sight = root @ root.T, Sight(n, is_causal)

    weights = softmax(ATTENTION, moments, sight)

    np.testing.assert_allclose(attended(ATTENTION, moments, weights, sight), 0.5 * average @ moments @ average.T)
    np.testing.assert_allclose(
        attended_back(ATTENTION, moments, moments, weights, sight), 0.5 * average.T @ moments @ average, atol=1e-12
    )
