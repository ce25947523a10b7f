"""Every choice of the architecture against its formula, written out here; discovery against each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from rheoscope.lab.architecture import GATED, Architecture
from rheoscope.lab.attention import Attention
from rheoscope.lab.norms import NormByHand
from rheoscope.lab.positions import bias_of_logits, rotary, sinusoidal
from rheoscope.lab.transformer import MLP, Block, ReferenceTransformer
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import LabError
from torch import Tensor, nn

SMALL: dict[str, Any] = {"n_blocks": 3, "width": 32, "n_heads": 4, "vocabulary": 61, "context": 9}
CHOICES: list[dict[str, Any]] = [
    *({"activation": name} for name in ("squared_relu", "glu", "reglu", "geglu")),
    *({"positions": name} for name in ("none", "sinusoidal", "rotary", "alibi")),
    {"norm_placement": "pre", "mlp_norm_placement": "post"},
    {"norm_placement": "none", "init": "xavier"},
    {"norm_kind": "layernorm_by_hand"},
    {"norm_kind": "rmsnorm_by_hand", "norm_gain": False},
    {"n_key_value_heads": 2},
    {"n_key_value_heads": 1, "positions": "rotary"},
    {"head_size": 16},
    {"window": 3},
    {"attention_soft_cap": 5.0},
    {"logit_soft_cap": 3.0},
    {"z_loss": 1e-2},
    {"ties_embeddings": True},
    {"embedding_scale": 32**0.5},
    {"embedding_std": 1.0},
    {"init": "lecun"},
    {"depth_scaling": "layernorm"},
    {"attention_biases": False, "mlp_biases": False},
    {"n_encoder_blocks": 2},
    {"n_encoder_blocks": 2, "norm_placement": "post", "depth_scaling": "deepnorm", "init": "xavier"},
]


def tokens(seed: int = 2) -> Tensor:
    return torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(seed))


def shaken(**choices: Any) -> ReferenceTransformer:
    """Return a float64 model whose every parameter is random, biases and gains included."""
    model = ReferenceTransformer(Architecture(**SMALL | choices), seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_trains_and_is_discovered_whole(choice: dict[str, Any]) -> None:
    model = ReferenceTransformer(Architecture(**SMALL | choice), seed=0)

    loss = model(tokens(), tokens(3)).loss
    loss.backward()
    anatomy = discover(model, tokens())

    shifts_alone = "key.bias"  # adding a constant to all logits of a query changes nothing
    assert all(
        p.grad is not None and (p.grad.any() or name.endswith(shifts_alone)) for name, p in model.named_parameters()
    )
    assert anatomy.is_complete, anatomy.problems
    design = model.architecture
    assert [stack.n_blocks for stack in anatomy.stacks] == [n for n in (design.n_encoder_blocks, design.n_blocks) if n]
    assert {branch.placement for branch in anatomy.branches} == {design.norm_placement, design.placement_of_mlp}
    assert anatomy.norm_kind == (
        "none" if design.norm_placement == "none" else design.norm_kind.removesuffix("_by_hand")
    )
    assert anatomy.ties_embeddings == design.ties_embeddings
    attention = next(b.attention for b in anatomy.branches if b.attention is not None)
    assert (attention.n_heads, attention.n_key_value_heads) == (design.n_heads, design.n_shared_heads)
    assert attention.head_size == design.size_of_head
    assert attention.soft_cap == (pytest.approx(design.attention_soft_cap) if design.attention_soft_cap else None)
    hidden = next(b.hidden for b in anatomy.branches if b.hidden is not None)
    assert (hidden.width, hidden.is_gated) == (design.hidden, design.activation in GATED)
    assert anatomy.positions == design.positions


@pytest.mark.parametrize("centred", [True, False])
def test_norms_by_hand_are_torchs_forward_and_backward(centred: bool) -> None:
    own = NormByHand(16, eps=1e-5, gain=True, bias=True, centred=centred).double()
    torchs = (nn.LayerNorm(16, eps=1e-5) if centred else nn.RMSNorm(16, eps=1e-5)).double()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter += torch.randn(16, dtype=torch.float64)
    torchs.load_state_dict(own.state_dict())
    x = (3 + torch.randn(4, 5, 16, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(4, 5, 16, dtype=torch.float64)

    found = [torch.autograd.grad((module(x) * weights).sum(), [x, *module.parameters()]) for module in (own, torchs)]

    assert torch.allclose(own(x), torchs(x), rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-10)
    assert torch.autograd.gradcheck(own, x)


def test_products_of_turned_queries_and_keys_depend_on_their_distance_alone() -> None:
    q, k = torch.randn(2, 8, dtype=torch.float64)

    products = rotary(q.expand(20, 8)) @ rotary(k.expand(20, 8)).T

    for distance in range(-19, 20):
        diagonal = products.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-12, atol=1e-12)
    assert torch.allclose(rotary(q.expand(20, 8)).norm(dim=-1), q.norm().expand(20))
    # Of a pair of channels, position 1 turns the first by one radian.
    turned = rotary(torch.eye(8, dtype=torch.float64)[:1].expand(2, 8))
    assert turned[1, :2].tolist() == pytest.approx([math.cos(1), math.sin(1)])


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoidal(12, 6)

    for position in range(12):
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            assert table[position, 2 * pair : 2 * pair + 2].tolist() == pytest.approx(
                [math.sin(angle), math.cos(angle)]
            )


def test_alibi_and_windows_are_slopes_and_walls_of_the_logits() -> None:
    bias = bias_of_logits(6, 4, alibi=True, window=3, is_causal=True)

    for head in range(4):
        for i in range(6):
            for j in range(6):
                is_seen = 0 <= i - j < 3
                assert float(bias[head, i, j]) == (
                    pytest.approx(-(2.0 ** (-2 * (head + 1))) * (i - j)) if is_seen else -math.inf
                )


@pytest.mark.parametrize(
    "choice", [{"attention_soft_cap": 2.0}, {"positions": "alibi"}, {"window": 3}, {"positions": "rotary"}], ids=str
)
@pytest.mark.parametrize("n_shared", [0, 2])
def test_attention_is_its_formula_query_by_query(choice: dict[str, Any], n_shared: int) -> None:
    attention = shaken(**choice, n_key_value_heads=n_shared).blocks[0].attention
    assert isinstance(attention, Attention)
    x = torch.randn(1, 9, 32, dtype=torch.float64)
    q, k, v = (
        project(x)[0].unflatten(-1, (-1, 8)).transpose(0, 1)
        for project in (attention.query, attention.key, attention.value)
    )
    if choice.get("positions") == "rotary":
        q, k = rotary(q), rotary(k)
    rows = []
    for i in range(9):
        heads = []
        for head in range(4):
            shared = head * len(k) // 4
            seen = [j for j in range(i + 1) if i - j < choice.get("window", 99)]
            logits = torch.stack([q[head, i] @ k[shared, j] / 8**0.5 for j in seen])
            if "attention_soft_cap" in choice:
                logits = 2.0 * torch.tanh(logits / 2.0)
            if choice.get("positions") == "alibi":
                logits = logits - 2.0 ** (-2 * (head + 1)) * torch.tensor([i - j for j in seen])
            heads.append(logits.softmax(0) @ torch.stack([v[shared, j] for j in seen]))
        rows.append(torch.cat(heads))

    assert torch.allclose(attention(x)[0], attention.output(torch.stack(rows)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("activation", ["squared_relu", "glu", "reglu", "geglu"])
def test_an_mlp_is_its_formula(activation: str) -> None:
    mlp = shaken(activation=activation).blocks[0].mlp
    assert isinstance(mlp, MLP)
    x = torch.randn(3, 32, dtype=torch.float64)
    up = mlp.up(x)
    first = {
        "squared_relu": up.clamp(min=0) ** 2,
        "glu": 1 / (1 + (-up).exp()),
        "reglu": up.clamp(min=0),
        "geglu": up * 0.5 * (1 + torch.erf(up / 2**0.5)),
    }[activation]

    expected = mlp.down(first if mlp.gate is None else first * mlp.gate(x))

    assert torch.allclose(mlp(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_an_encoder_and_a_decoder_are_torchs(placement: str) -> None:
    model = shaken(n_encoder_blocks=1, n_blocks=1, norm_placement=placement, positions="none")
    first = placement == "pre"
    how: dict[str, Any] = {"batch_first": True, "norm_first": first, "dtype": torch.float64, "activation": "gelu"}
    encoder = nn.TransformerEncoderLayer(32, 4, 128, 0.0, layer_norm_eps=1e-6, **how)
    decoder = nn.TransformerDecoderLayer(32, 4, 128, 0.0, layer_norm_eps=1e-6, **how)
    for layer, block in ((encoder, model.encoder[0]), (decoder, model.blocks[0])):
        layer.load_state_dict(_in_torchs_names(block, "in" if first else "post"))
    x, source = (model.token_embedding(tokens(seed)) for seed in (2, 3))
    read = model.encoder_norm(encoder(source))

    expected = decoder(x, read, tgt_mask=torch.ones(9, 9, dtype=torch.bool).triu(1))

    logits = model(tokens(2), source=tokens(3)).logits
    assert torch.allclose(logits, model.head(model.final_norm(expected)), rtol=1e-9, atol=1e-9)


def _in_torchs_names(block: nn.Module, place: str) -> dict[str, Tensor]:
    assert isinstance(block, Block)
    own = dict(block.named_parameters())
    found: dict[str, Tensor] = {}
    parts = {"attention": "self_attn", "cross": "multihead_attn"}
    present = [name for name in parts if f"{name}.query.weight" in own]
    for name in present:
        for kind in ("weight", "bias"):
            rows = [own[f"{name}.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{parts[name]}.in_proj_{kind}"] = torch.cat(rows)
            found[f"{parts[name]}.out_proj.{kind}"] = own[f"{name}.output.{kind}"]
    for kind in ("weight", "bias"):
        found[f"linear1.{kind}"], found[f"linear2.{kind}"] = own[f"mlp.up.{kind}"], own[f"mlp.down.{kind}"]
        for index, name in enumerate([*present, "mlp"]):
            found[f"norm{index + 1}.{kind}"] = own[f"{name}_{place}.{kind}"]
    return found


def test_caps_ties_scales_and_the_z_loss_are_their_formulas() -> None:
    plain = shaken()
    capped = ReferenceTransformer(Architecture(**SMALL, logit_soft_cap=3.0, z_loss=0.1)).double()
    capped.load_state_dict(plain.state_dict())
    logits = 3.0 * torch.tanh(plain(tokens()).logits / 3.0)
    cross_entropy = -logits.log_softmax(-1).gather(-1, tokens(3).unsqueeze(-1)).mean()

    found = capped(tokens(), tokens(3))

    assert torch.allclose(found.logits, logits)
    expected = cross_entropy + 0.1 * logits.exp().sum(-1).log().square().mean()
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()))
    tied = shaken(ties_embeddings=True)
    assert tied.head.weight is tied.token_embedding.weight


def test_scaled_norms_shrink_what_the_kth_block_reads_by_the_root_of_k() -> None:
    plain, scaled = shaken(), ReferenceTransformer(Architecture(**SMALL, depth_scaling="layernorm")).double()
    scaled.load_state_dict(plain.state_dict())
    x = torch.randn(1, 9, 32, dtype=torch.float64)
    block = plain.blocks[2]
    y = x + block.attention(block.attention_in(x) / 3**0.5)

    assert torch.allclose(scaled.blocks[2](x), y + block.mlp(block.mlp_in(y) / 3**0.5), rtol=1e-9, atol=1e-9)


def test_lecun_init_has_the_variance_of_the_fan_in() -> None:
    weight = ReferenceTransformer(Architecture(1, 128, init="lecun")).blocks[0].mlp.down.weight

    assert float(weight.detach().std()) == pytest.approx(512**-0.5, rel=0.02)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"n_key_value_heads": 3}, "n_key_value_heads=3 and n_heads=4"),
        ({"positions": "rotary", "head_size": 3}, "even size"),
        ({"depth_scaling": "layernorm", "norm_placement": "post"}, "only with norm_placement='pre', got 'post'"),
        ({"is_parallel": True, "mlp_norm_placement": "post"}, "got 'post and pre'"),
        ({"is_parallel": True, "n_encoder_blocks": 2}, "only without an encoder"),
        ({"norm_biases": True, "norm_gain": False}, "only with norm_gain"),
        ({"window": -1}, "window >= 0, got -1"),
    ],
)
def test_a_contradiction_names_the_fields(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(LabError, match=words):
        Architecture(**choice)
