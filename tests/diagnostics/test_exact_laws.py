"""Laws of transformers that hold to rounding, whatever the weights: float64, norms without epsilon."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor, nn
from torch.nn import functional

EXACT = 1e-10
SHAPE: dict[str, Any] = {"n_blocks": 3, "width": 32, "n_heads": 4, "vocabulary": 50, "context": 12, "init_std": 0.2}


def model_of(**choices: Any) -> ReferenceTransformer:
    """Return a float64 model without epsilons, biases random where there are any."""
    model = ReferenceTransformer(Architecture(**SHAPE | choices), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.eps = 0.0
    return model


def batch() -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(50, (2, 3, 12), generator=torch.Generator().manual_seed(2))
    return tokens, targets


def backward(model: ReferenceTransformer) -> Tensor:
    loss = model(*batch()).loss
    assert loss is not None
    loss.backward()
    return loss.detach()


def cosine(a: Tensor, b: Tensor | None) -> float:
    """Return the cosine between a tensor and a gradient."""
    assert b is not None
    return float((a * b).sum().detach() / (a.norm() * b.norm()).detach())


@pytest.mark.parametrize("placement", ["double", "reordered"])
@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_weights_before_an_output_norm_are_orthogonal_to_their_gradients(placement: str, kind: str) -> None:
    # E1: the loss does not change when they are scaled, hence <W, dL/dW> = 0 (Euler).
    model = model_of(norm_placement=placement, norm_kind=kind, biases=False, activation="relu")
    backward(model)

    for block in model.blocks:
        for weight in (block.attention.value, block.attention.output, block.mlp.up, block.mlp.down):
            assert abs(cosine(weight.weight, weight.weight.grad)) < EXACT


def test_weights_that_nothing_norms_are_not() -> None:
    model = model_of(norm_placement="pre", biases=False)
    backward(model)

    assert abs(cosine(model.blocks[0].mlp.down.weight, model.blocks[0].mlp.down.weight.grad)) > 1e-4


def test_a_scaled_weight_before_a_norm_leaves_the_loss_and_divides_its_gradient() -> None:
    # E1: c W gives the same loss and 1 / c of the gradient.
    plain, scaled = (model_of(norm_placement="double", biases=False) for _ in range(2))
    with torch.no_grad():
        scaled.blocks[1].mlp.down.weight *= 4

    losses = [backward(model) for model in (plain, scaled)]

    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=EXACT)
    torch.testing.assert_close(
        scaled.blocks[1].mlp.down.weight.grad, plain.blocks[1].mlp.down.weight.grad / 4, rtol=EXACT, atol=1e-14
    )


def test_queries_and_keys_before_a_norm_are_orthogonal_to_their_gradients_head_by_head() -> None:
    # E1 under QK-norm: each head is normed on its own.
    model = model_of(qk_norm=True, biases=False)
    backward(model)

    for block in model.blocks:
        for weight in (block.attention.query.weight, block.attention.key.weight):
            assert weight.grad is not None
            for head, gradient in zip(weight.chunk(4), weight.grad.chunk(4), strict=True):
                assert abs(cosine(head, gradient)) < EXACT


def test_the_keys_bias_receives_no_gradient() -> None:
    # E2: a softmax does not change when all its logits shift by what one query makes of the bias.
    model = model_of()
    backward(model)

    for block in model.blocks:
        key, query = block.attention.key.bias.grad, block.attention.query.bias.grad
        assert key is not None
        assert query is not None
        assert float(key.norm()) < EXACT * float(query.norm())


def test_a_bias_before_a_layernorm_has_a_gradient_of_sum_zero() -> None:
    # E3: a LayerNorm takes the mean away; an RMSNorm does not.
    sums = {}
    for kind in ("layernorm", "rmsnorm"):
        model = model_of(norm_placement="post", norm_kind=kind)
        backward(model)
        gradients = [bias.grad for b in model.blocks for bias in (b.attention.output.bias, b.mlp.down.bias)]
        sums[kind] = max(float(g.sum().abs() / g.norm()) for g in gradients if g is not None)

    assert sums["layernorm"] < EXACT
    assert sums["rmsnorm"] > 1e-2


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_last_states_gradient_is_orthogonal_to_the_state(kind: str) -> None:
    # E4: a norm's Jacobian gives nothing along its input, and a LayerNorm's nothing along ones.
    model, states = model_of(norm_kind=kind), list[Tensor]()
    model.final_norm.register_forward_pre_hook(lambda module, args: (args[0].retain_grad(), states.append(args[0]))[0])
    backward(model)

    state, gradient = states[0].detach(), states[0].grad
    assert gradient is not None
    size = gradient.norm(dim=-1)
    centred = state - state.mean(-1, keepdim=True) if kind == "layernorm" else state
    assert float(((gradient * centred).sum(-1) / (size * centred.norm(dim=-1))).abs().max()) < EXACT
    along_ones = float((gradient.sum(-1) / size).abs().max())
    assert along_ones < EXACT if kind == "layernorm" else along_ones > 1e-3


def test_logit_gradients_of_cross_entropy_sum_to_nothing() -> None:
    # E5: the mean logit is left to itself.
    logits = torch.randn(7, 50, dtype=torch.float64, requires_grad=True, generator=torch.Generator().manual_seed(0))
    functional.cross_entropy(logits, torch.arange(7)).backward()

    assert logits.grad is not None
    assert float(logits.grad.sum(-1).abs().max()) < EXACT


def test_rotary_positions_tell_only_how_far_apart_two_tokens_are() -> None:
    # E6, of the rotation that transformers applies: <R_i q, R_j k> depends on i - j alone, and norms stay.
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=generator)
    angles = torch.arange(40, dtype=torch.float64)[:, None] * 10_000 ** (-torch.arange(8, dtype=torch.float64) / 8)
    angles = torch.cat([angles, angles], -1)[None]
    q, k = llama.apply_rotary_pos_emb(q.expand(1, 1, 40, 16), k.expand(1, 1, 40, 16), angles.cos(), angles.sin())

    products = (q @ k.transpose(-1, -2))[0, 0]

    for distance in range(-39, 40):
        along = products.diagonal(distance)
        assert float((along - along[0]).abs().max()) < EXACT
    assert float((q.norm(dim=-1) - q.norm(dim=-1)[..., :1]).abs().max()) < EXACT


def test_normed_queries_and_keys_bound_the_logits() -> None:
    # E7: |logit| <= sqrt(head size) max |gain_q| max |gain_k|, whatever the weights.
    attention = model_of(qk_norm=True, norm_kind="rmsnorm", init_std=30.0).blocks[0].attention
    with torch.no_grad():
        attention.query_norm.weight.uniform_(0.5, 3.0)
        attention.key_norm.weight.uniform_(0.5, 2.0)
    x = 100 * torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    q = attention.query_norm(attention.query(x).view(-1, 8)).detach()
    k = attention.key_norm(attention.key(x).view(-1, 8)).detach()

    bound = math.sqrt(8) * float(attention.query_norm.weight.detach().max() * attention.key_norm.weight.detach().max())
    assert float((q @ k.T).abs().max()) / math.sqrt(8) <= bound + EXACT


@pytest.mark.parametrize("placement", ["pre", "post", "double", "reordered"])
def test_biases_of_zero_change_no_bit(placement: str) -> None:
    # E10
    with_biases, without = (
        ReferenceTransformer(Architecture(**SHAPE, norm_placement=placement, biases=biases), seed=3)
        for biases in (True, False)
    )

    assert torch.equal(with_biases(batch()[0]).logits, without(batch()[0]).logits)


@pytest.mark.parametrize("std", [0.5, 1.0, 1.5])
def test_entropy_of_gaussian_logits_falls_by_half_their_variance(std: float) -> None:
    # E11
    logits = std * torch.randn(200, 1024, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()

    assert float(entropy) == pytest.approx(math.log(1024) - std**2 / 2, abs=0.03)


def test_the_entropy_bound_of_short_logits_is_reached() -> None:
    # E11: rows of length sigma have at least this entropy (Zhai et al. 2023); one large logit against the rest reaches it.
    n, sigma = 64, 3.0
    beta = math.exp(-sigma * math.sqrt(n / (n - 1)))
    bound = math.log(1 + (n - 1) * beta) + sigma * math.sqrt(n * (n - 1)) * beta / (1 + (n - 1) * beta)
    row = torch.full((n,), -1 / (n - 1), dtype=torch.float64)
    row[0] = 1.0
    row *= sigma / row.norm()

    entropy = torch.distributions.Categorical(logits=row).entropy()

    assert float(entropy) == pytest.approx(bound, abs=1e-9)
    others = sigma * functional.normalize(torch.randn(2000, n, dtype=torch.float64), dim=-1)
    assert float(torch.distributions.Categorical(logits=others).entropy().min()) > bound


def test_relu_keeps_half_the_energy_of_a_centred_gaussian() -> None:
    # E13 (Xiong et al. 2020, Lemma 1).
    x = 0.7 * torch.randn(4_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert float(functional.relu(x).square().mean()) == pytest.approx(0.49 / 2, rel=5e-3)


def test_a_layernorms_jacobian_has_norm_root_d_over_the_centred_input() -> None:
    # E13 (Xiong et al. 2020, Lemma 3).
    x = torch.randn(24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    jacobian = torch.autograd.functional.jacobian(lambda t: functional.layer_norm(t, (24,), eps=0.0), x)

    expected = math.sqrt(24) / float((x - x.mean()).norm())
    assert float(torch.linalg.matrix_norm(jacobian, 2)) == pytest.approx(expected, rel=EXACT)
