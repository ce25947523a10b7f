"""How far the loss falls beside what its gradient promised: by hand, and with training left as it is to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from oracles import NanoGPT
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(0, 61, (8, 4, 8), generator=torch.Generator().manual_seed(0))


class Model(NanoGPT):
    """Has running statistics, which a forward in training mode changes."""

    def __init__(self) -> None:
        super().__init__("pre", dropout=0.1)
        self.statistics = nn.BatchNorm1d(61)

    def forward(self, ids: Tensor) -> Tensor:
        return self.statistics(super().forward(ids).transpose(1, 2)).transpose(1, 2)


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def trained(
    folder: Path | None,
    rate: float = 0.05,
    clip: float | None = None,
    factor: float = 1.0,
    micro: int = 1,
    **options: Any,
) -> tuple[Model, list[float], pd.DataFrame, list[str]]:
    """Return the model, the ratios by hand, the recorded steps, and what events of the kind said."""
    torch.manual_seed(0)
    model = Model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.5)
    probe = None if folder is None else attach(model, optimizer, folder=folder, every=1, strict=True, **options)
    by_hand = []
    for ids in IDS:
        state = torch.get_rng_state()
        for _ in range(micro):
            loss = factor * loss_of(model(ids), ids)
            loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        old = [p.detach().clone() for p in model.parameters() if p.grad is not None]
        optimizer.step()
        if folder is None:
            moved = zip([p for p in model.parameters() if p.grad is not None], old, gradients, strict=True)
            promised = sum(float((g.double() * (p.detach().double() - o.double())).sum()) for p, o, g in moved)
            kept = torch.get_rng_state(), {name: value.clone() for name, value in model.named_buffers()}
            torch.set_rng_state(state)
            with torch.no_grad():
                after = float(loss_of(model(ids), ids))
            torch.set_rng_state(kept[0])
            for name, value in model.named_buffers():
                value.copy_(kept[1][name])
            by_hand.append((after - float(loss.detach())) / promised)
        optimizer.zero_grad()
        if probe is not None:
            probe.step(loss)
    if probe is None or folder is None:
        return model, by_hand, pd.DataFrame(), []
    probe.close()
    found = Recording.load(folder)
    events = found.table("events")
    return model, by_hand, found.table("steps"), events.loc[events["kind"] == "decrease_ratio", "sentence"].tolist()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("rate", [0.01, 1.0])
def test_the_ratio_is_that_of_two_forwards_by_hand(tmp_path: Path, rate: float, clip: float | None) -> None:
    _, by_hand, _, _ = trained(None, rate, clip)
    _, _, steps, told = trained(tmp_path / "run", rate, clip, curvature=True)
    assert steps["decrease_ratio"].tolist() == pytest.approx(by_hand, rel=2e-3, abs=2e-3)
    assert told == []


def test_a_small_update_keeps_its_promise_and_a_large_one_overshoots(tmp_path: Path) -> None:
    _, _, small, _ = trained(tmp_path / "small", 1e-3, curvature=True)
    _, _, large, _ = trained(tmp_path / "large", 30.0, curvature=True)
    assert small["decrease_ratio"].between(0.95, 1.05).all()
    assert (large["decrease_ratio"] < 0.5).any()


def test_training_is_left_as_it_is_to_the_bit(tmp_path: Path) -> None:
    plain, _, _, _ = trained(None)
    torch_state = torch.get_rng_state()
    seen, _, _, _ = trained(tmp_path / "run", curvature=True)
    assert torch.equal(torch_state, torch.get_rng_state())
    for (name, one), (_, other) in zip(plain.state_dict().items(), seen.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    assert all(p.grad is None for p in seen.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in seen.modules())


def test_what_else_is_recorded_is_the_same(tmp_path: Path) -> None:
    trained(tmp_path / "plain")
    trained(tmp_path / "asked", curvature=True)
    plain, asked = (Recording.load(tmp_path / name) for name in ("plain", "asked"))
    for name in ("activations", "gradient_paths", "parameters", "attention", "logits"):
        pd.testing.assert_frame_equal(plain.table(name), asked.table(name))


def test_it_is_null_unless_asked_for(tmp_path: Path) -> None:
    _, _, steps, _ = trained(tmp_path / "run")
    assert steps["decrease_ratio"].isna().all()


def test_a_loss_that_the_output_does_not_give_is_told_once(tmp_path: Path) -> None:
    _, _, steps, told = trained(tmp_path / "run", factor=2.0, curvature=True)
    assert steps["decrease_ratio"].isna().all()
    assert len(told) == 1
    assert "not measured" in told[0]


def test_several_micro_batches_are_not_measured(tmp_path: Path) -> None:
    _, _, steps, told = trained(tmp_path / "run", micro=2, curvature=True)
    assert steps["decrease_ratio"].isna().all()
    assert told == []


def test_a_model_that_fails_there_trains_on(tmp_path: Path) -> None:
    class Once(Model):
        def forward(self, ids: Tensor) -> Tensor:
            if not torch.is_grad_enabled() and self.training:
                raise RuntimeError("never twice")
            return super().forward(ids)

    torch.manual_seed(0)
    model = Once().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    # Discovery runs forwards of its own without gradients: in evaluation mode.
    with attach(model, optimizer, folder=tmp_path / "run", every=1, curvature=True) as probe:
        for ids in IDS:
            loss = loss_of(model(ids), ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    steps = Recording.load(tmp_path / "run").table("steps")
    assert len(steps) == len(IDS)
    assert steps["loss"].notna().all()
    assert steps["decrease_ratio"].isna().all()
