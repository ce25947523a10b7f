"""A changed model does what the same model does where the change is written by hand: forward and every gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracles import NanoGPT, PostNormEncoder
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.changes import Change, change
from rheoscope.lab.choices import Choices
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.discovery.dissect import discover
from rheoscope.probes.errors import LabError
from torch import Tensor, nn
from torch.nn import functional

BASE = Architecture(n_blocks=2, width=16, n_heads=2, context=8, vocabulary=31)
POST = replace(BASE, norm_placement="post")
DEEPNORM = replace(POST, depth_scaling="deepnorm")
TOKENS = torch.randint(31, (2, 8), generator=torch.Generator().manual_seed(0))
BRANCHES = {1: "blocks.0.attention", 2: "blocks.0.mlp", 3: "blocks.1.attention", 4: "blocks.1.mlp"}
TOLERANCE = 1e-6


def changed(model: nn.Module, batch: Any, **choices: Any) -> nn.Module:
    """Return a changed copy."""
    return change(model, batch, discover(model, batch), Choices(**choices)).of(model)


def spoiled(model: nn.Module, only: Callable[[str], bool] = lambda _: True) -> nn.Module:
    """Move every parameter, so that gains are not 1 and biases not 0."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only(name):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def by_hand_name(name: str, moved: tuple[str, str] | None) -> str:
    """Return the name that a parameter of the changed model has in the one written by hand."""
    name = name.replace(".norm.", ".")
    if name.startswith("added_norms.0_final"):
        return name.replace("added_norms.0_final", "final_norm")
    if name.startswith("added_norms.0_"):
        place, _, rest = name.removeprefix("added_norms.0_").partition(".")
        depth, _, where = place.partition("_")
        ends = {"output": "_out", "input": "_in", "query": ".query_norm", "key": ".key_norm"}
        return f"{BRANCHES[int(depth)]}{ends[where]}.{rest}"
    return name.replace(*moved) if moved else name


CASES: dict[str, tuple[Architecture, Architecture, tuple[str, str] | None, dict[str, Any]]] = {
    "pre to post": (BASE, POST, ("_in.", "_post."), {"norm_placement": "post"}),
    "post to pre": (POST, BASE, ("_post.", "_in."), {"norm_placement": "pre"}),
    "pre to double": (BASE, replace(BASE, norm_placement="double"), None, {"norm_placement": "double"}),
    "double to pre": (replace(BASE, norm_placement="double"), BASE, None, {"norm_placement": "pre"}),
    "pre to reordered": (
        BASE,
        replace(BASE, norm_placement="reordered"),
        ("_in.", "_out."),
        {"norm_placement": "reordered"},
    ),
    "reordered to pre": (
        replace(BASE, norm_placement="reordered"),
        BASE,
        ("_out.", "_in."),
        {"norm_placement": "pre"},
    ),
    "pre to none": (BASE, replace(BASE, norm_placement="none"), None, {"norm_placement": "none"}),
    "to none in post": (POST, replace(BASE, norm_placement="none"), None, {"norm_placement": "none"}),
    "LayerNorm to RMSNorm": (
        replace(BASE, norm_biases=False),
        replace(BASE, norm_kind="rmsnorm"),
        None,
        {"norm_kind": "rmsnorm"},
    ),
    "RMSNorm to LayerNorm": (
        replace(BASE, norm_kind="rmsnorm"),
        replace(BASE, norm_biases=False),
        None,
        {"norm_kind": "layernorm"},
    ),
    "RMSNorm without gains to LayerNorm": (
        replace(BASE, norm_kind="rmsnorm", norm_gain=False),
        replace(BASE, norm_gain=False),
        None,
        {"norm_kind": "layernorm"},
    ),
    "biases off": (BASE, replace(BASE, biases=False), None, {"biases": False}),
    "QK-norm on": (BASE, replace(BASE, qk_norm=True), None, {"qk_norm": True}),
    "QK-norm off": (replace(BASE, qk_norm=True), BASE, None, {"qk_norm": False}),
    "soft cap on": (BASE, replace(BASE, attention_soft_cap=2.0), None, {"soft_cap": 2.0}),
    "soft cap off": (replace(BASE, attention_soft_cap=2.0), BASE, None, {"soft_cap": 0.0}),
    "post to DeepNorm": (POST, DEEPNORM, None, {"skip_scale": DEEPNORM.skip_scale}),
    "pre to DeepNorm": (
        BASE,
        DEEPNORM,
        ("_in.", "_post."),
        {"norm_placement": "post", "skip_scale": DEEPNORM.skip_scale},
    ),
    "DeepNorm to pre": (DEEPNORM, BASE, ("_post.", "_in."), {"norm_placement": "pre", "skip_scale": 1.0}),
    "several at once": (
        replace(BASE, norm_biases=False),
        replace(POST, norm_kind="rmsnorm", biases=False),
        ("_in.", "_post."),
        {"norm_placement": "post", "norm_kind": "rmsnorm", "biases": False},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_forward_and_gradients_are_those_of_the_model_written_by_hand(case: str) -> None:
    source, target, moved, choices = CASES[case]
    model = spoiled(ReferenceTransformer(source))

    mine = changed(model, (TOKENS, TOKENS), **choices)

    assert_same(mine, by_hand(mine, target, moved), moved)


@pytest.mark.parametrize(("before", "after"), [("pre", "post"), ("pre", "reordered"), ("post", "pre")])
def test_encoder_and_decoder_change_alike(before: str, after: str) -> None:
    source = replace(BASE, n_encoder_blocks=2, norm_placement=before)
    moved = {"pre": ("_post.", "_in."), "post": ("_in.", "_post."), "reordered": ("_in.", "_out.")}[after]
    model = spoiled(ReferenceTransformer(source))

    mine = changed(model, (TOKENS, TOKENS), norm_placement=after)
    # Final norms that are put in have gains of 1 and biases of 0, as those of a new model have.
    hand = ReferenceTransformer(replace(source, norm_placement=after))
    with torch.no_grad():
        copy_common(mine, hand, moved)

    assert torch.allclose(mine(TOKENS).logits, hand(TOKENS).logits, atol=TOLERANCE)


def test_a_parallel_block_turned_to_post_norms_its_one_sum() -> None:
    class Parallel(nn.Module):
        def __init__(self, is_post: bool) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(31, 16), nn.Linear(16, 31)
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
            self.left = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
            self.right = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)) for _ in range(3))
            self.is_post = is_post

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for norm, left, right in zip(self.norms, self.left, self.right, strict=True):
                h = x if self.is_post else norm(x)
                x = x + left(h) + right(h)
                x = norm(x) if self.is_post else x
            return self.head(x)

    torch.manual_seed(0)
    model, hand = Parallel(False), Parallel(True)
    hand.load_state_dict(model.state_dict())

    mine = changed(model, TOKENS, norm_placement="post")

    assert torch.equal(mine(TOKENS), hand(TOKENS))


@pytest.mark.parametrize("placement", ["post", "double", "reordered"])
def test_adds_in_place_are_rewritten_too(placement: str) -> None:
    torch.manual_seed(0)
    plain, in_place = NanoGPT(), NanoGPT(kind="inplace")
    in_place.load_state_dict(plain.state_dict())

    mine = changed(in_place, TOKENS, norm_placement=placement)
    expected = changed(plain, TOKENS, norm_placement=placement)

    assert_equal_gradients(mine, expected, TOKENS)


def test_attention_written_out_gets_qk_norm_on_the_axis_of_features() -> None:
    torch.manual_seed(0)
    model = NanoGPT()

    mine = changed(model, TOKENS, qk_norm=True)
    logits = mine(TOKENS)

    norm = nn.LayerNorm(8, bias=True)
    hand = copy.deepcopy(model)
    for block in hand.blocks:
        block.attention.forward = _attention_with_qk_norm(block.attention, norm)
    assert torch.allclose(logits, hand(TOKENS), atol=TOLERANCE)


def test_queries_that_were_scaled_before_are_scaled_again_behind_their_norm() -> None:
    torch.manual_seed(0)
    plain, before = NanoGPT(), NanoGPT()
    before.load_state_dict(plain.state_dict())
    for block in before.blocks:
        block.attention.forward = _scaled_before(block.attention)

    mine = changed(before, TOKENS, qk_norm=True)
    expected = changed(plain, TOKENS, qk_norm=True)

    assert torch.allclose(mine(TOKENS), expected(TOKENS), atol=TOLERANCE)
    assert not torch.allclose(mine(TOKENS), plain(TOKENS), atol=1e-3)


def torch_encoder(is_pre: bool) -> PostNormEncoder:
    """Return torch's own encoder, post- or pre-norm; the latter ends in a norm."""
    torch.manual_seed(0)
    model = PostNormEncoder()
    if is_pre:
        for layer in model.encoder.layers:
            layer.norm_first = True
        model.encoder.norm = nn.LayerNorm(16)
    return model.train()


def test_torchs_encoder_turned_to_pre_is_torchs_encoder_with_norm_first() -> None:
    model, hand = spoiled(torch_encoder(is_pre=False)), spoiled(torch_encoder(is_pre=True))
    hand.load_state_dict({**model.state_dict(), **nn.LayerNorm(16).state_dict(prefix="encoder.norm.")})

    mine = changed(model, TOKENS, norm_placement="pre").train()

    assert torch.allclose(mine(TOKENS), hand(TOKENS), atol=TOLERANCE)


def test_torchs_encoder_turned_to_post_is_torchs_encoder_without_norm_first() -> None:
    model, hand = spoiled(torch_encoder(is_pre=True)), torch_encoder(is_pre=False)
    hand.load_state_dict({name: value for name, value in model.state_dict().items() if "encoder.norm" not in name})

    mine = changed(model, TOKENS, norm_placement="post").train()

    assert torch.allclose(mine(TOKENS), hand(TOKENS), atol=TOLERANCE)


def test_biases_of_torchs_fused_attention_go_too() -> None:
    model = spoiled(torch_encoder(is_pre=False))

    mine = changed(model, TOKENS, biases=False).train()

    hand = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in hand.encoder.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    assert torch.allclose(mine(TOKENS), hand(TOKENS), atol=TOLERANCE)
    assert not [name for name, p in mine.named_parameters() if "encoder" in name and name.endswith("bias") and p.any()]


@pytest.mark.parametrize("choice", [{"qk_norm": True}, {"soft_cap": 5.0}])
def test_fused_attention_hides_queries_and_keys_and_says_so(choice: dict[str, Any]) -> None:
    with pytest.raises(LabError, match="queries and keys in sight"):
        changed(torch_encoder(is_pre=False), TOKENS, **choice)


def test_dropout_in_training_leaves_what_is_rewritten_the_same() -> None:
    source = replace(BASE, dropout=0.3)
    model = spoiled(ReferenceTransformer(source)).train()
    mine = changed(model, (TOKENS, TOKENS), norm_placement="post").train()
    hand = by_hand(mine, replace(POST, dropout=0.3), ("_in.", "_post.")).train()

    torch.manual_seed(3)
    got = mine(TOKENS).logits
    torch.manual_seed(3)
    expected = hand(TOKENS).logits

    assert torch.allclose(got, expected, atol=TOLERANCE)


def test_code_that_asks_a_norm_for_its_gain_finds_it_when_the_norm_has_moved() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(31, 16), nn.Linear(16, 31)
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
            self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            for norm, branch in zip(self.norms, self.branches, strict=True):
                x = x + branch(norm(x.to(norm.weight.dtype)))
            return self.head(x)

    assert discover(changed(Asking(), TOKENS, norm_placement="post"), TOKENS).placement == "post"


def test_a_bias_that_only_training_asks_for_is_kept_at_zero() -> None:
    class Asking(NanoGPT):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(ids) + (self.blocks[0].mlp[0].bias.sum() if self.training else 0.0)

    mine = changed(Asking(), TOKENS, biases=False).train()

    mine(TOKENS)
    kept = {name: p for name, p in mine.named_parameters() if name.endswith("bias")}
    assert kept
    assert not any(p.requires_grad or bool(p.any()) for p in kept.values())


def test_a_copy_of_a_changed_model_is_changed_and_stands_alone() -> None:
    mine = changed(spoiled(ReferenceTransformer(POST)), (TOKENS, TOKENS), norm_placement="pre")
    expected = mine(TOKENS).logits.detach().clone()

    twin = copy.deepcopy(mine)
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.zero_()

    assert torch.equal(twin(TOKENS).logits, expected)
    assert discover(twin, TOKENS).placement == "pre"


def test_a_forward_that_raises_leaves_no_function_mode_behind() -> None:
    mine = changed(ReferenceTransformer(BASE), (TOKENS, TOKENS), norm_placement="post")
    before = mine(TOKENS).logits

    with pytest.raises(IndexError):
        mine(torch.full((1, 4), 10_000))

    assert torch._C._len_torch_function_stack() == 0
    assert torch.equal(mine(TOKENS).logits, before)


def test_a_forward_that_takes_another_way_than_the_traced_one_is_refused() -> None:
    mine = changed(Skipping(), TOKENS, norm_placement="post")

    mine.eval()(TOKENS)
    with pytest.raises(LabError, match="takes another way"):
        mine.train()(TOKENS)


def test_gradient_checkpointing_is_refused_because_it_runs_blocks_again_unchanged() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(ReferenceTransformer):
        def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
            x = self._embedded(tokens)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.training else block(x)
            return self.head(self.final_norm(x))

    mine = changed(Checkpointed(BASE), TOKENS, norm_placement="post").train()

    loss = mine(TOKENS).square().mean()
    with pytest.raises(LabError, match="gradient checkpointing"):
        loss.backward()


@pytest.mark.parametrize(
    ("architecture", "choices", "words"),
    [
        (BASE, {}, "a choice to change, got none"),
        (BASE, {"norm_placement": "sideways"}, "norm_placement to be one of"),
        (BASE, {"norm_kind": "batchnorm"}, "norm_kind to be one of"),
        (BASE, {"norm_placement": "pre"}, "'pre', which it has"),
        (BASE, {"norm_kind": "layernorm"}, "'layernorm', which it has"),
        (BASE, {"biases": True}, "biases=False, got True"),
        (BASE, {"qk_norm": False}, "QK-norm for qk_norm=False, got none"),
        (replace(BASE, qk_norm=True), {"qk_norm": True}, "without QK-norm"),
        (replace(BASE, biases=False), {"biases": False}, "got none in any projection"),
        (BASE, {"soft_cap": 0.0}, "a bound for soft_cap=0, got none"),
        (BASE, {"soft_cap": -1.0}, "soft_cap >= 0"),
        (replace(BASE, attention_soft_cap=3.0), {"soft_cap": 2.0}, "without a bound, got 3"),
        (BASE, {"skip_scale": 0.0}, "skip_scale > 0"),
        (BASE, {"norm_placement": "none", "norm_kind": "rmsnorm"}, "norm_kind only with norms"),
        (replace(BASE, norm_placement="none"), {"norm_placement": "pre"}, "Expected norm_kind for norms"),
        (replace(BASE, norm_placement="none"), {"norm_kind": "rmsnorm"}, "a model with norms"),
        (replace(BASE, is_parallel=True), {"norm_placement": "post"}, "one norm to move in the parallel block"),
        (replace(BASE, is_parallel=True), {"norm_placement": "double"}, "added one by one"),
    ],
)
def test_a_choice_that_contradicts_the_model_is_refused_in_a_sentence(
    architecture: Architecture, choices: dict[str, Any], words: str
) -> None:
    with pytest.raises(LabError, match=words):
        changed(ReferenceTransformer(architecture), (TOKENS, TOKENS), **choices)


def test_a_model_without_attention_is_told_from_one_with_it() -> None:
    with pytest.raises(LabError, match="a model with attention"):
        changed(Skipping().eval(), TOKENS, qk_norm=True)


def test_an_anatomy_with_a_gap_is_refused_with_the_gap_named() -> None:
    model = ReferenceTransformer(BASE)
    anatomy = replace(discover(model, TOKENS), problems=("The write of block 1 is not certified.",))

    with pytest.raises(LabError, match="The write of block 1 is not certified"):
        change(model, TOKENS, anatomy, Choices(norm_placement="post"))


def test_the_change_is_made_on_every_model_built_alike() -> None:
    first, second = ReferenceTransformer(BASE, seed=0), ReferenceTransformer(BASE, seed=1)
    found: Change = change(first, TOKENS, discover(first, TOKENS), Choices(norm_placement="post"))

    mine = found.of(second)

    assert_same(mine, by_hand(mine, POST, ("_in.", "_post.")), ("_in.", "_post."))


class Skipping(nn.Module):
    """Leaves its last block out in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(31, 16), nn.Linear(16, 31)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for norm, branch in [*zip(self.norms, self.branches, strict=True)][: 2 if self.training else 3]:
            x = x + branch(norm(x))
        return self.head(x)


def by_hand(mine: nn.Module, target: Architecture, moved: tuple[str, str] | None) -> ReferenceTransformer:
    """Return the target architecture with the weights of the changed model."""
    hand = ReferenceTransformer(target)
    with torch.no_grad():
        missing = copy_common(mine, hand, moved)
    assert not missing
    return hand


def copy_common(mine: nn.Module, hand: nn.Module, moved: tuple[str, str] | None) -> list[str]:
    """Copy what has a counterpart; return the names in ``hand`` that have none."""
    have = {by_hand_name(name, moved): parameter for name, parameter in mine.named_parameters()}
    for name, parameter in hand.named_parameters():
        if name in have:
            parameter.copy_(have[name])
    return [name for name, _ in hand.named_parameters() if name not in have]


def assert_same(mine: nn.Module, hand: nn.Module, moved: tuple[str, str] | None) -> None:
    """Compare logits, loss and all gradients; the scale is that of the largest gradient."""
    got, expected = mine(TOKENS, TOKENS), hand(TOKENS, TOKENS)
    got.loss.backward()
    expected.loss.backward()
    assert torch.allclose(got.logits, expected.logits, rtol=0, atol=TOLERANCE)
    have = {by_hand_name(name, moved): p.grad for name, p in mine.named_parameters()}
    wanted = {name: p.grad for name, p in hand.named_parameters()}
    assert set(wanted) == set(have)
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((have[name] - gradient).abs().max()) <= TOLERANCE * largest, name


def assert_equal_gradients(mine: nn.Module, hand: nn.Module, tokens: Tensor) -> None:
    """Compare output and gradients of two models with the same parameters."""
    outputs = [model(tokens) for model in (mine, hand)]
    assert torch.allclose(*outputs, atol=TOLERANCE)
    for output in outputs:
        functional.cross_entropy(output.flatten(0, 1), tokens.flatten()).backward()
    for (name, p), (_, q) in zip(mine.named_parameters(), hand.named_parameters(), strict=True):
        assert p.grad is not None, name
        assert torch.allclose(p.grad, q.grad, atol=TOLERANCE), name


def _scaled_before(attention: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, 2, -1).transpose(1, 2) for t in attention.qkv(x).chunk(3, -1))
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        logits = ((q / (width // 2) ** 0.5) @ k.transpose(-2, -1)).masked_fill(~mask, float("-inf"))
        return attention.drop(attention.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)))

    return forward


def _attention_with_qk_norm(attention: nn.Module, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, 2, -1).transpose(1, 2) for t in attention.qkv(x).chunk(3, -1))
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        logits = (norm(q) @ norm(k).transpose(-2, -1) / (width // 2) ** 0.5).masked_fill(~mask, float("-inf"))
        return attention.drop(attention.out((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)))

    return forward
