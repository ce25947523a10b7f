"""Coherence of bias gradients, against sums over tokens of gradients that autograd gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from oracles import NanoGPT, ids, loss_of
from rheoscope.diagnostics.coherence import bias_coherence
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.recorder import attach
from torch import Tensor, nn

Batches = list[dict[str, Tensor]]
BATCHES: Batches = [{"ids": ids(seed=s), "targets": ids(seed=s + 7)} for s in (0, 1)]


def last_projections(model: NanoGPT) -> list[nn.Linear]:
    """Return the last projection of every branch."""
    return [layer for block in model.blocks for layer in (block.attention.out, block.mlp[2])]


def token_gradients(model: NanoGPT, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    """Return, of every last projection, input and gradient at its output, a row a token, float64."""
    layers = last_projections(model)
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in layers]
    for batch in batches:
        seen: list[tuple[Tensor, Tensor]] = []
        hooks = [layer.register_forward_hook(lambda m, x, y, to=seen: to.append((x[0], y))) for layer in layers]
        loss = loss_of(model, batch)
        for hook in hooks:
            hook.remove()
        gradients = torch.autograd.grad(loss, [y for _, y in seen])
        for (inputs, outputs), (x, _), g in zip(found, seen, gradients, strict=True):
            inputs.append(x.detach().double().flatten(0, -2))
            outputs.append(g.double().flatten(0, -2))
    return [(torch.cat(x), torch.cat(g)) for x, g in found]


def recorded(model: NanoGPT, batches: Batches, folder: Path, clip: Callable[[], object] = lambda: None) -> pd.DataFrame:
    """Return the coherence of one recorded step of plain gradient descent."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
        for batch in batches:
            loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        clip()
        optimizer.step()
        probe.step(1.0)
    return bias_coherence(Tables(probe.recording))


@pytest.mark.parametrize("n_batches", [1, 2])
@pytest.mark.parametrize("most", [None, 0.05])
def test_coherence_is_that_of_the_tokens_gradients(n_batches: int, most: float | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = NanoGPT().train()
    batches = BATCHES[:n_batches]
    expected = token_gradients(model, batches)

    def clip() -> None:
        if most is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), most)

    frame = recorded(model, batches, tmp_path / "run", clip)

    assert frame["branch"].tolist() == ["attention", "mlp"] * 2
    for (x, g), (_, row) in zip(expected, frame.iterrows(), strict=True):
        n = len(g)
        coherence = float(g.sum(0).square().sum() / g.square().sum())
        others = g.sum(0).square().sum() - g.square().sum()  # products of pairs
        assert row["n_tokens"] == n
        assert row["coherence"] == pytest.approx(coherence, rel=1e-4)
        assert row["cosine"] == pytest.approx(float(others / (n - 1) / g.square().sum()), rel=1e-3, abs=1e-6)
        ratio = x.shape[1] * x.square().mean() * g.sum(0).square().sum() / (g.T @ x).square().sum()
        if row["branch"] == "mlp":
            assert row["bias_weight_ratio"] == pytest.approx(float(ratio), rel=1e-4)
        else:
            assert pd.isna(row["bias_weight_ratio"])


def test_of_gradients_clipped_apart_nothing_is_said(tmp_path: Path) -> None:
    model = NanoGPT().train()

    def clip() -> None:
        torch.nn.utils.clip_grad_norm_(model.blocks.parameters(), 1e-3)
        torch.nn.utils.clip_grad_norm_(model.head.parameters(), 1e-2)

    frame = recorded(model, BATCHES[:1], tmp_path / "run", clip)

    assert len(frame) == 4
    assert frame["coherence"].isna().all()


def test_a_gradient_that_its_tokens_cannot_give_is_not_judged(tmp_path: Path) -> None:
    model = NanoGPT().train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # left over from before

    frame = recorded(model, BATCHES[:1], tmp_path / "run")

    assert frame["coherence"].isna().all()


def test_random_gradients_have_a_coherence_near_one_and_equal_ones_that_of_all_tokens(tmp_path: Path) -> None:
    # The loss is linear in the last branch's output: its gradient is what the loss multiplies it with.
    model = NanoGPT(n_blocks=1).train()
    model.norm, model.head = nn.Identity(), nn.Identity()
    factors = {"random": torch.randn(3, 8, 16), "equal": torch.randn(16).expand(3, 8, 16)}
    found = {}
    for name, factor in factors.items():
        model.zero_grad()
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        with attach(model, optimizer, every=1, folder=tmp_path / name, strict=True) as probe:
            loss = (model(ids()) * factor).sum()
            loss.backward()
            optimizer.step()
            probe.step(loss)
        frame = bias_coherence(Tables(probe.recording))
        found[name] = float(frame[frame["branch"] == "mlp"]["coherence"].iloc[0])

    assert found["equal"] == pytest.approx(24, rel=1e-5)
    assert 0.3 < found["random"] < 2.5
