"""The reference transformer against torch's own layers and a forward written by hand; discovery against its design."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import Attention, ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import LabError
from torch import Tensor, nn
from torch.nn import functional

LENGTH, BATCH, EPS = 7, 2, 1e-6
SMALL: dict[str, Any] = {"n_blocks": 2, "width": 16, "n_heads": 2, "vocabulary": 31, "context": LENGTH}
DESIGNS = [
    {"norm_placement": placement, "norm_kind": kind, "biases": biases, "is_parallel": is_parallel}
    for placement in ("pre", "post", "double", "reordered")
    for kind in ("layernorm", "rmsnorm")
    for biases in (True, False)
    for is_parallel in (False, True)
    if placement == "pre" or not is_parallel
]


def shaken(**choices: Any) -> ReferenceTransformer:
    """Return a float64 model whose every parameter is random, biases and gains included."""
    model = ReferenceTransformer(Architecture(**SMALL | choices), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def tokens() -> Tensor:
    return torch.randint(31, (BATCH, LENGTH), generator=torch.Generator().manual_seed(2))


def normed(weights: dict[str, Tensor], name: str, x: Tensor, kind: str) -> Tensor:
    """Return a norm over the last axis from its formula; the identity where the model has none of this name."""
    if f"{name}.weight" not in weights:
        return x
    if kind == "rmsnorm":
        return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weights[f"{name}.weight"]
    centred = x - x.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weights[f"{name}.weight"]
    return y + weights.get(f"{name}.bias", torch.zeros(()))


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", torch.zeros(()))


def attended(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Return causal attention, head by head and query by query."""
    q, k, v = (linear(weights, f"{name}.{part}", x) for part in ("query", "key", "value"))
    size = x.shape[-1] // SMALL["n_heads"]
    gathered = torch.zeros_like(x)
    for start in range(0, x.shape[-1], size):
        head = slice(start, start + size)
        for i in range(x.shape[1]):
            logits = (q[:, i : i + 1, head] * k[:, : i + 1, head]).sum(-1) / math.sqrt(size)
            gathered[:, i, head] = (logits.softmax(-1).unsqueeze(-1) * v[:, : i + 1, head]).sum(1)
    return linear(weights, f"{name}.output", gathered)


def by_hand(model: ReferenceTransformer, ids: Tensor) -> Tensor:
    """Return the logits from the design's formulas alone."""
    design, weights = model.architecture, {name: p.detach() for name, p in model.named_parameters()}
    kind = design.norm_kind
    x = weights["token_embedding.weight"][ids] + weights["position_embedding.weight"][: ids.shape[1]]
    for block in range(design.n_blocks):
        added = []
        for branch in ("attention", "mlp"):
            at = f"blocks.{block}"
            y = normed(weights, f"{at}.{branch}_in", x, kind)
            if branch == "attention":
                y = attended(weights, f"{at}.attention", y)
            else:
                y = linear(weights, f"{at}.mlp.down", functional.gelu(linear(weights, f"{at}.mlp.up", y)))
            y = normed(weights, f"{at}.{branch}_out", y, kind)
            if design.is_parallel:
                added.append(y)
            else:
                x = normed(weights, f"{at}.{branch}_post", x + y, kind)
        x = x + sum(added)
    return normed(weights, "final_norm", x, kind) @ weights["head.weight"].T


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_the_forward_is_the_designs_formula(design: dict[str, Any]) -> None:
    model = shaken(**design)

    assert torch.allclose(model(tokens()).logits, by_hand(model, tokens()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_a_block_is_torchs_encoder_layer_under_a_causal_mask(placement: str) -> None:
    model = shaken(norm_placement=placement)
    block = model.blocks[0]
    assert isinstance(block.attention, Attention)
    torchs = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, "gelu", EPS, batch_first=True, norm_first=placement == "pre", dtype=torch.float64
    )
    suffix = "in" if placement == "pre" else "post"
    own = dict(block.named_parameters())
    theirs = {
        "self_attn.in_proj_weight": torch.cat([own[f"attention.{part}.weight"] for part in ("query", "key", "value")]),
        "self_attn.in_proj_bias": torch.cat([own[f"attention.{part}.bias"] for part in ("query", "key", "value")]),
    }
    for kind in ("weight", "bias"):
        theirs[f"self_attn.out_proj.{kind}"] = own[f"attention.output.{kind}"]
        theirs[f"linear1.{kind}"], theirs[f"linear2.{kind}"] = own[f"mlp.up.{kind}"], own[f"mlp.down.{kind}"]
        theirs[f"norm1.{kind}"] = own[f"attention_{suffix}.{kind}"]
        theirs[f"norm2.{kind}"] = own[f"mlp_{suffix}.{kind}"]
    torchs.load_state_dict(theirs)
    x = torch.randn(BATCH, LENGTH, 16, dtype=torch.float64)
    mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)

    assert torch.allclose(block(x), torchs(x, src_mask=mask), rtol=1e-9, atol=1e-9)


def test_the_loss_is_the_mean_cross_entropy_of_the_targets() -> None:
    model, targets = shaken(), tokens().flip(0)

    expected = -model(tokens()).logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).mean()

    assert float(model(tokens(), targets).loss.detach()) == pytest.approx(float(expected.detach()))


@pytest.mark.parametrize("design", DESIGNS, ids=str)
def test_discovery_finds_the_design(design: dict[str, Any]) -> None:
    model = ReferenceTransformer(Architecture(**SMALL | {"n_blocks": 3} | design), seed=0)

    anatomy = discover(model, tokens())

    assert anatomy.problems == ()
    assert anatomy.is_complete
    assert (anatomy.n_blocks, anatomy.placement) == (3, design["norm_placement"])
    assert (anatomy.norm_kind, anatomy.is_parallel) == (design["norm_kind"], design["is_parallel"])


@pytest.mark.parametrize("design", [design for design in DESIGNS if design["norm_kind"] == "layernorm"], ids=str)
def test_a_check_up_finds_whether_the_blocks_have_biases(design: dict[str, Any]) -> None:
    model = ReferenceTransformer(Architecture(**SMALL | design), seed=0)

    assert Tables(examine(model, tokens())).has_biases() == design["biases"]


def test_building_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    ReferenceTransformer(Architecture(**SMALL), seed=5)

    assert torch.equal(torch.rand(1), expected)


def test_the_weights_depend_on_the_seed_alone() -> None:
    a, b, other = (ReferenceTransformer(Architecture(**SMALL), seed=seed) for seed in (1, 1, 2))

    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.head.weight, other.head.weight)


@pytest.mark.parametrize("init", ["normal", "xavier"])
def test_matrices_have_the_std_of_their_init_and_biases_start_at_zero(init: str) -> None:
    model = ReferenceTransformer(Architecture(n_blocks=1, width=128, init=init), seed=0)
    parameters = dict(model.named_parameters())

    std = 0.02 if init == "normal" else math.sqrt(2 / (128 + 512))
    assert float(parameters["blocks.0.mlp.up.weight"].detach().std()) == pytest.approx(std, rel=0.02)
    assert not parameters["blocks.0.mlp.up.bias"].any()
    assert bool((parameters["blocks.0.mlp_in.weight"] == 1).all())


def test_biases_that_start_at_zero_change_nothing_at_init() -> None:
    with_biases, without = (ReferenceTransformer(Architecture(**SMALL, biases=b), seed=4) for b in (True, False))

    assert torch.equal(with_biases(tokens()).logits, without(tokens()).logits)


def test_gpt2_scaling_divides_the_last_projections_by_the_root_of_twice_the_depth() -> None:
    plain, scaled = (
        dict(ReferenceTransformer(Architecture(**SMALL, depth_scaling=scaling), seed=1).named_parameters())
        for scaling in ("none", "gpt2")
    )

    for name, parameter in plain.items():
        is_last = name.endswith(("output.weight", "down.weight"))
        factor = (2 * Architecture(**SMALL).n_blocks) ** -0.5 if is_last else 1.0
        torch.testing.assert_close(scaled[name], parameter * factor)


def test_deepnorm_budget_is_one() -> None:
    # 2N (v^2 + w^2) / alpha^2 = 1 with v = w = beta (Wang et al. 2022, DeepNet): alpha scales skips, beta the weights.
    for n_blocks in (1, 6, 18):
        beta = (8 * n_blocks) ** -0.25
        alpha = Architecture(n_blocks, norm_placement="post", depth_scaling="deepnorm").skip_scale

        assert 2 * n_blocks * 2 * beta**2 / alpha**2 == pytest.approx(1, abs=1e-12)


def test_deepnorm_scales_skips_and_the_weights_that_carry_values() -> None:
    shape = {**SMALL, "norm_placement": "post"}
    plain, deep = (ReferenceTransformer(Architecture(**shape, depth_scaling=s), seed=1) for s in ("none", "deepnorm"))

    beta = (8 * plain.architecture.n_blocks) ** -0.25
    for (name, before), after in zip(plain.named_parameters(), deep.parameters(), strict=True):
        is_deep = any(part in name for part in ("value.weight", "output.weight", "up.weight", "down.weight"))
        torch.testing.assert_close(after, before * (beta if is_deep else 1.0))
    with pytest.raises(LabError, match="deepnorm"):
        Architecture(depth_scaling="deepnorm")


def test_swiglu_multiplies_silu_by_a_gate() -> None:
    mlp = ReferenceTransformer(Architecture(**{**SMALL, "activation": "swiglu", "biases": False}), seed=2).blocks[0].mlp
    x = torch.randn(3, mlp.up.in_features)

    expected = (functional.silu(x @ mlp.up.weight.T) * (x @ mlp.gate.weight.T)) @ mlp.down.weight.T

    torch.testing.assert_close(mlp(x), expected)


def test_qk_norm_bounds_the_logits() -> None:
    attention = ReferenceTransformer(Architecture(**SMALL, qk_norm=True), seed=2).blocks[0].attention
    x = 100 * torch.randn(1, 5, attention.query.in_features)

    q, k = (
        n(p(x).view(-1, 8)).detach()
        for n, p in ((attention.query_norm, attention.query), (attention.key_norm, attention.key))
    )

    assert float((q @ k.T / 8**0.5).abs().max()) <= 8**0.5 * 1.0001
