"""Shares of a gradient: against gradients sample by sample and token by token, and against captum's TracInCP."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attribution_cases import TINY, ids_of, shaken
from oracles import VOCABULARY, WIDTH, NanoGPT, gpt2
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.attribution import gradient_shares
from rheoscope.probes.errors import ProbeError
from torch import Tensor, nn
from torch.nn import functional


def gradient(loss: Tensor, weights: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(found, weights, strict=True)])


def test_shares_are_those_of_gradients_taken_one_by_one() -> None:
    model, ids = shaken(NanoGPT(n_blocks=2)), ids_of()
    weights = list(model.blocks[1].parameters())

    rows = gradient_shares(model, (ids,), 1).to_frame()

    losses = functional.cross_entropy(model(ids)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none") / (3 * 7)
    whole = gradient(losses.sum(), weights)
    shares = torch.tensor(
        [[float(gradient(loss, weights) @ whole / (whole @ whole)) for loss in row] for row in losses]
    )
    samples = rows[(rows["method"] == "gradient_share") & rows["position"].isna()]["value"]
    assert samples.tolist() == pytest.approx(shares.sum(1).tolist(), abs=1e-5)
    tokens = rows[rows["position"].notna()]
    for _, row in tokens[tokens["position"] < 7].iterrows():
        assert row["value"] == pytest.approx(float(shares[int(row["sample"]), int(row["position"])]), abs=1e-5)
    assert float(rows[rows["method"] == "gradient_norm"]["value"].iloc[0]) == pytest.approx(
        float(whole.norm()), rel=1e-4
    )


def test_the_loss_of_a_padded_batch_weighs_samples_as_the_model_does() -> None:
    model, ids = shaken(gpt2(n_blocks=2)), ids_of()
    labels = ids.clone()
    labels[0, 3:] = -100

    found = gradient_shares(model, {"input_ids": ids, "labels": labels}, 0)

    assert found.error is not None
    assert found.error < 1e-5
    rows = found.to_frame()
    assert rows[rows["position"].notna() & (rows["sample"] == 0) & (rows["position"] > 2)]["value"].abs().max() < 1e-6


def test_captums_influence_of_samples_on_each_other_gives_the_same_shares(tmp_path: Path) -> None:
    from captum.influence import TracInCP

    class Block(nn.Module):
        """A stream of one block between an embedding and a head, for tokens that are one each."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
            self.one, self.two = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            x = x + self.one(x)
            x = x + self.two(x)
            return self.head(x)[:, 0]

    model, ids, targets = Block(), ids_of(6)[:, :1], ids_of(6)[:, 1]
    found = gradient_shares(model, (ids,), loss_fn=lambda output, _: functional.cross_entropy(output, targets))
    place = found.ranking[0]
    frame = found.to_frame()
    mine = frame[(frame["method"] == "gradient_share") & (frame["block"] == place[1]) & frame["position"].isna()]

    # One checkpoint with learning rate 1: the influence of i on j is the product of their gradients.
    tracin = TracInCP(
        model,
        torch.utils.data.TensorDataset(ids, targets),
        [""],
        checkpoints_load_func=lambda *_: 1.0,
        layers=sorted({name.rpartition(".")[0] for name in _owned(model, found, place)}),
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=1,
        sample_wise_grads_per_batch=False,
    )
    products = tracin.influence((ids, targets))

    assert mine["value"].tolist() == pytest.approx((products.sum(0) / products.sum()).tolist(), abs=1e-5)


def _owned(model: nn.Module, found: object, place: tuple[int, int]) -> list[str]:
    """Return the names of a block's weights, as discovery places them."""
    from rheoscope.probes.attribution.parts import parameter_parts
    from rheoscope.probes.discovery import discover

    parts = parameter_parts(discover(model, (ids_of(6)[:, :1],)), [name for name, _ in model.named_parameters()])
    return [name for name, part in parts.items() if part[:2] == place]


def test_without_forward_mode_samples_are_told_apart_by_a_backward_each() -> None:
    ids = ids_of()
    choices = TINY | {"norm_kind": "rmsnorm"}
    by_hand = shaken(ReferenceTransformer(Architecture(**choices | {"norm_kind": "rmsnorm_by_hand"}), seed=0))
    plain = ReferenceTransformer(Architecture(**choices), seed=0).eval()
    plain.load_state_dict(by_hand.state_dict())

    slow, fast = (gradient_shares(model, (ids, ids), 1) for model in (by_hand, plain))

    slow_rows, fast_rows = slow.to_frame(), fast.to_frame()
    assert slow_rows["position"].isna().all()
    assert "not told apart" in str(slow)
    shares = slow_rows[slow_rows["method"] == "gradient_share"]["value"].tolist()
    expected = fast_rows[(fast_rows["method"] == "gradient_share") & fast_rows["position"].isna()]["value"].tolist()
    assert shares == pytest.approx(expected, abs=1e-4)


def test_a_token_is_knocked_out_by_the_mean_of_the_first_states() -> None:
    model, ids = shaken(gpt2(n_blocks=2)), ids_of(2)

    found = gradient_shares(model, {"input_ids": ids, "labels": ids}, 1, token_knock_out=True).to_frame()

    knocked = found[found["method"] == "token_knock_out"]
    sample = int(knocked["sample"].iloc[0])
    weights = list(model.transformer.h[1].parameters())
    one = ids[sample : sample + 1]

    def norm(position: int | None) -> float:
        def replaced(_: nn.Module, __: object, state: Tensor) -> Tensor:
            changed = state.clone()
            if position is not None:
                changed[:, position] = state.mean((0, 1))
            return changed

        handle = model.transformer.drop.register_forward_hook(replaced)
        try:
            return float(gradient(model(input_ids=one, labels=one).loss, weights).norm())
        finally:
            handle.remove()

    expected = [norm(None) - norm(position) for position in range(8)]
    assert knocked["value"].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_samples_are_named_by_their_index_alone() -> None:
    model, ids = shaken(gpt2()), ids_of()
    told = str(gradient_shares(model, {"input_ids": ids, "labels": ids}))

    assert "sample 0" in told
    assert not any(str(row.tolist()) in told for row in ids)


def test_a_block_that_is_not_there_is_refused_in_a_sentence() -> None:
    ids = ids_of()

    with pytest.raises(ProbeError, match="block 9 of stack 0"):
        gradient_shares(gpt2(), {"input_ids": ids, "labels": ids}, 9)
