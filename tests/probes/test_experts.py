"""Routing is measured where a branch routes, against the router's own outputs in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import rheoscope as rs
import torch
from oracles import VOCABULARY, NanoGPT, ids
from rheoscope.probes.experts import routing_rows
from rheoscope.probes.function_taps import FunctionTaps
from torch import Tensor, nn
from torch.nn import functional

N_EXPERTS, N_CHOSEN = 4, 2
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "num_experts_per_tok": N_CHOSEN,
}


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=N_EXPERTS))


def qwen2() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    more = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": N_EXPERTS}
    return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SIZES, **more))


def olmoe() -> nn.Module:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    return OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=N_EXPERTS, pad_token_id=0, eos_token_id=1))


def deepseek() -> nn.Module:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    low_rank = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    routed = {"n_routed_experts": N_EXPERTS, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 2}
    config = DeepseekV3Config(**{**SIZES, "num_key_value_heads": 4}, **low_rank, **routed, first_k_dense_replace=0)
    return DeepseekV3ForCausalLM(config)


def measured(model: nn.Module, batch: dict[str, Any]) -> list[dict[str, Any]]:
    taps = FunctionTaps(model, rs.discover(model, batch))
    with taps.watching():
        model(**batch)
    return taps.take()["experts"]


def routers(model: nn.Module, batch: dict[str, Any], path: str) -> list[tuple[Tensor, ...]]:
    """Return the outputs of the modules whose path ends in ``path``."""
    found: list[tuple[Tensor, ...]] = []
    handles = [
        module.register_forward_hook(lambda m, args, output: found.append(output))
        for name, module in model.named_modules()
        if name.endswith(path)
    ]
    model(**batch)
    for handle in handles:
        handle.remove()
    return found


def assert_routing(rows: list[dict[str, Any]], shares: Tensor, indices: Tensor) -> None:
    """Assert that rows are of this routing: shares (tokens, experts) in float64 and indices (tokens, chosen)."""
    router, *experts = rows
    shares, n_experts = shares.detach(), shares.shape[1]
    entropy = float(-(shares * shares.log()).sum(1).mean())
    assert [row["expert"] for row in rows] == list(range(-1, n_experts))
    assert router["router_entropy"] == pytest.approx(entropy, rel=1e-5)
    assert router["entropy_ratio"] == pytest.approx(entropy / math.log(n_experts), rel=1e-5)
    load = [float((indices == expert).double().mean()) for expert in range(n_experts)]
    assert [row["load"] for row in experts] == pytest.approx(load)
    assert [row["probability"] for row in experts] == pytest.approx(shares.mean(0).tolist(), rel=1e-5)
    assert {(row["n_tokens"], row["n_chosen"]) for row in rows} == {(len(shares), indices.shape[1])}


@pytest.mark.parametrize(("make", "kind"), [(mixtral, "softmax"), (qwen2, "softmax"), (olmoe, "softmax")])
def test_softmax_routers_are_measured(make: Any, kind: str) -> None:
    model, batch = make().eval(), {"input_ids": ids()}
    seen = routers(model, batch, "mlp.gate")

    rows = measured(model, batch)

    assert len(rows) == 2 * (N_EXPERTS + 1)
    assert {row["gate"] for row in rows} == {kind}
    for block, (logits, _, indices) in enumerate(seen):
        # Some versions of these routers return their logits, some what they made of them.
        given = logits.double()
        is_shares = torch.allclose(given.sum(-1), torch.ones(len(given), dtype=torch.float64), atol=1e-5)
        assert_routing(
            [row for row in rows if row["block"] == block], given if is_shares else given.softmax(1), indices
        )


def test_a_sigmoid_router_with_groups_is_measured_by_its_last_choice() -> None:
    model, batch = deepseek().eval(), {"input_ids": ids()}
    seen = routers(model, batch, "mlp.gate")

    rows = measured(model, batch)

    assert {row["gate"] for row in rows} == {"sigmoid"}
    for block, (logits, _, indices) in enumerate(seen):
        scores = logits.double().sigmoid()
        shares = scores / scores.sum(1, keepdim=True)
        assert_routing([row for row in rows if row["block"] == block], shares, indices)


class Mixture(nn.Module):
    """Experts side by side, each given its own tokens, and no more of them than its capacity."""

    def __init__(self, capacity: int = 1000, is_padded: bool = False) -> None:
        super().__init__()
        self.router = nn.Linear(16, N_EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)) for _ in range(N_EXPERTS)
        )
        self.capacity, self.is_padded = capacity, is_padded

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        values, indices = self.router(flat).topk(N_CHOSEN)
        shares, out = values.softmax(-1), torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            tokens, nth = torch.where(indices == number)
            tokens, nth = tokens[: self.capacity], nth[: self.capacity]
            given = flat[tokens]
            if self.is_padded:
                given = functional.pad(given, (0, 0, 0, 30 - len(tokens)))
            made = expert(given)[: len(tokens)]
            out = out.index_add(0, tokens, made * shares[tokens, nth].unsqueeze(-1))
        return out.view_as(x)


class Decoder(nn.Module):
    def __init__(self, mixture: nn.Module) -> None:
        super().__init__()
        self.inner = NanoGPT()
        for block in self.inner.blocks:
            block.mlp = copy.deepcopy(mixture)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)


def test_a_mixture_by_hand_is_measured_from_the_logits_that_it_chooses_by() -> None:
    model = Decoder(Mixture())
    logits = routers(model, {"ids": ids()}, "router")

    rows = measured(model, {"ids": ids()})

    assert {row["gate"] for row in rows} == {"logits"}
    for block, given in enumerate(logits):
        mine = [row for row in rows if row["block"] == block]
        assert_routing(mine, given.double().softmax(1), given.topk(N_CHOSEN).indices)
        assert mine[0]["dropped_share"] == 0.0


def test_tokens_beyond_an_experts_capacity_are_counted_as_dropped() -> None:
    capacity = 7
    model = Decoder(Mixture(capacity))
    logits = routers(model, {"ids": ids()}, "router")

    rows = [row for row in measured(model, {"ids": ids()}) if row["expert"] == -1]

    for row, given in zip(rows, logits, strict=True):
        counts = given.topk(N_CHOSEN).indices.flatten().bincount(minlength=N_EXPERTS)
        dropped = (counts - capacity).clamp_min(0).sum() / counts.sum()
        assert row["dropped_share"] == pytest.approx(float(dropped))
        assert row["dropped_share"] > 0


def test_what_padded_experts_drop_is_unknown() -> None:
    rows = measured(Decoder(Mixture(is_padded=True)), {"ids": ids()})

    assert {row["dropped_share"] for row in rows if row["expert"] == -1} == {None}


class TwoByTwo(Mixture):
    """Chooses a second expert after masking the first."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        shares = self.router(flat).softmax(-1)
        first = shares.argmax(-1)
        second = shares.masked_fill(functional.one_hot(first, N_EXPERTS).bool(), -1.0).argmax(-1)
        outputs = torch.stack([expert(flat) for expert in self.experts], 1)
        chosen = functional.one_hot(first, N_EXPERTS) + functional.one_hot(second, N_EXPERTS)
        return (outputs * (shares * chosen).unsqueeze(-1)).sum(1).view_as(x)


class Sparse(nn.Module):
    """Keeps the largest of its hidden numbers: no router."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        least = hidden.topk(8, -1).values[..., -1:]
        return self.down(hidden * (hidden >= least))


@pytest.mark.parametrize("make", [TwoByTwo, Sparse])
def test_what_is_not_certain_is_not_recorded(make: Any) -> None:
    assert measured(Decoder(make()), {"ids": ids()}) == []


class Switch(Mixture):
    """Chooses one expert by the largest probability."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        shares = self.router(flat).softmax(-1)
        largest, chosen = torch.max(shares, dim=-1)
        outputs = torch.stack([expert(flat) for expert in self.experts], 1)
        return (outputs[torch.arange(len(flat)), chosen] * largest.unsqueeze(-1)).view_as(x)


def test_one_expert_a_token_by_the_largest_is_measured() -> None:
    model = Decoder(Switch())
    logits = routers(model, {"ids": ids()}, "router")

    rows = measured(model, {"ids": ids()})

    for block, given in enumerate(logits):
        shares = given.double().softmax(1)
        assert_routing([row for row in rows if row["block"] == block], shares, shares.argmax(1, keepdim=True))


def test_a_router_that_is_certain_has_no_entropy() -> None:
    gate = functional.one_hot(torch.tensor([0, 0, 1]), 3).float()

    rows = routing_rows(gate, "softmax", torch.tensor([[0], [0], [1]]))

    assert rows.tolist() == [[2, 2], [1, 1], [0, 0], [0, 3]]
