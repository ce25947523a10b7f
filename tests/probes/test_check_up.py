"""A check-up leaves the model bit-identical, and agrees with autograd and closed forms."""

from __future__ import annotations

import copy
import random

import numpy as np
import oracles
import pytest
import torch
from oracles import ORACLES, NanoGPT, Plain, batch_of, gradients, rms
from rheoscope.probes.check_up import default_loss, examine
from rheoscope.probes.errors import BatchError, DiscoveryError
from torch import Tensor, nn


class Busy(NanoGPT):
    """A model whose forward draws random numbers, counts in buffers and replaces one of them."""

    def __init__(self) -> None:
        super().__init__("pre", dropout=0.3)
        self.register_buffer("counter", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(2))
        self.batch_norm = nn.BatchNorm1d(oracles.WIDTH)
        self.blocks[0].eval()

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        self.counter += 1
        self.latest = torch.rand(2) + random.random() + float(np.random.rand())
        loss = super().forward(ids, targets)
        return loss + 0 * self.batch_norm(self.tokens(ids).flatten(0, 1)).sum()


def snapshot(model: nn.Module) -> dict[str, object]:
    """Return everything that an examination might change."""
    return {
        "weights": [p.detach().clone() for p in model.parameters()],
        "versions": [p._version for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "gradient objects": [id(p.grad) for p in model.parameters()],
        "buffers": [b.clone() for b in model.buffers()],
        "buffer objects": [id(b) for b in model.buffers()],
        "flags": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
    }


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Return the names of what changed, bit for bit."""
    return [name for name, value in before.items() if not same(value, after[name])]


def same(a: object, b: object) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


@pytest.mark.parametrize("make", [Busy, *(oracle.make for oracle in ORACLES.values())])
@pytest.mark.parametrize("with_gradients", [False, True])
def test_examine_leaves_the_model_bit_identical(make: object, with_gradients: bool) -> None:
    model = make()
    if with_gradients:
        oracles.loss_of(model, batch_of(model)).backward()
    before = snapshot(model)

    recording = examine(model, batch_of(model))

    assert len(recording.table("activations")) > 0
    assert differences(before, snapshot(model)) == []


def test_a_failed_examination_leaves_the_model_bit_identical() -> None:
    model = Busy()
    before = snapshot(model)

    def fail(output: object, batch: object) -> Tensor:
        raise ArithmeticError("in the loss")

    with pytest.raises(BatchError, match="in the loss"):
        examine(model, batch_of(model), fail)
    with pytest.raises(BatchError):
        examine(model, torch.full((1, 4), 10_000))

    assert differences(before, snapshot(model)) == []


def test_examine_under_no_grad_measures_gradients_all_the_same() -> None:
    model = NanoGPT()
    with torch.no_grad():
        recording = examine(model, batch_of(model))

    assert (recording.table("activations")["direction"] == "backward").any()


@pytest.mark.parametrize("name", ORACLES)
def test_gradients_of_a_check_up_are_those_of_autograd_without_dropout(name: str) -> None:
    oracle = ORACLES[name]
    model = oracle.make(dropout=0.3)
    batch = batch_of(model)
    still = copy.deepcopy(model).eval()
    expected = [rms(gradient) for gradient in gradients(still, oracle.states, batch)]

    rows = examine(model, batch).table("activations")

    states = rows[(rows["site"] == "state") & (rows["direction"] == "backward")].sort_values("depth")
    assert states["rms"].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_every_add_of_the_oracles_is_certified(name: str) -> None:
    model = ORACLES[name].make()

    recording = examine(model, batch_of(model))

    assert recording.anatomy.is_complete, recording.anatomy.problems
    ledger = recording.table("identities")
    ledger = ledger[ledger["check"] == "ledger"]
    assert len(ledger) == recording.anatomy.n_branches
    assert (ledger["observed"] <= ledger["tolerance"]).all()


def test_the_seed_alone_decides_the_noise() -> None:
    model = NanoGPT()
    one, again, other = (examine(model, batch_of(model), seed=seed).table("identities") for seed in (1, 1, 2))

    chosen = one["check"] == "amplification"
    assert one["observed"][chosen].tolist() == again["observed"][chosen].tolist()
    assert one["observed"][chosen].tolist() != other["observed"][chosen].tolist()


def test_the_loss_is_the_outputs_own_then_next_token_cross_entropy() -> None:
    model = NanoGPT().eval()
    tokens = oracles.ids()
    logits = model(tokens)
    expected = oracles.cross_entropy(logits, tokens)

    assert torch.equal(default_loss(logits, tokens), expected)
    assert default_loss({"loss": torch.tensor(3.0), "logits": logits}, tokens) == 3.0
    assert default_loss((torch.tensor(2.0), logits), tokens) == 2.0


def test_an_output_without_a_loss_asks_for_one() -> None:
    with pytest.raises(BatchError, match=r"Expected an output with a scalar loss.* Pass loss_fn="):
        default_loss(torch.zeros(2, 3, 4), (torch.zeros(2, 3),))


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    model = NanoGPT()

    with pytest.raises(
        BatchError, match=r"Expected loss_fn\(output, batch\) to return a scalar.* got Tensor\(3, 8, 61"
    ):
        examine(model, oracles.ids(), lambda output, batch: output)


def test_a_model_without_anything_to_train_is_refused() -> None:
    model = NanoGPT().requires_grad_(False)

    with pytest.raises(BatchError, match="Expected a loss that depends on parameters that require gradients"):
        examine(model, batch_of(model))


def test_a_model_without_a_residual_stream_is_refused() -> None:
    with pytest.raises(DiscoveryError, match="Expected a model whose blocks add what they compute to a running sum"):
        examine(Plain(), batch_of(Plain()))


@pytest.mark.parametrize("batch", [3, "text", None])
def test_a_batch_of_no_known_kind_is_refused(batch: object) -> None:
    with pytest.raises(BatchError, match="Expected a batch that is a Tensor, a tuple of arguments or a mapping"):
        examine(NanoGPT(), batch)


def test_a_check_up_is_saved_and_read_back(tmp_path: object) -> None:
    recording = examine(NanoGPT(), batch_of(NanoGPT()), label="at init")

    loaded = recording.save(f"{tmp_path}/check-up")

    assert loaded.manifest == recording.manifest
    assert loaded.table("identities").equals(recording.table("identities"))
