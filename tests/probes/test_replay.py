"""A step that lost its numbers is run again: the first operation is named, and training goes on as if nothing had been."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.probes.recorder import attach
from rheoscope.probes.replay import Replay
from torch import Tensor, nn
from torch.nn import functional

IDS = torch.randint(0, 61, (12, 2, 8), generator=torch.Generator().manual_seed(0))
ILL_STEP = 6


class Fragile(nn.Module):
    """Takes the root of something that is 0 only in the ill batch, whose first token is 60."""

    def __init__(self, inner: nn.Module, *, is_backward: bool) -> None:
        super().__init__()
        self.inner, self.is_backward, self.is_ill = inner, is_backward, False

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        if not self.is_ill:
            return y
        return y + (y * 0).abs().sqrt() if self.is_backward else y + (y.abs() * 0).log()


class Model(NanoGPT):
    """Tells its fragile part when the ill batch comes."""

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.blocks[1].mlp.is_ill = bool(ids[0, 0] == 60)
        return super().forward(ids, *args, **kwargs)


def trained(folder: Path | None, *, is_backward: bool = False, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Model("pre", dropout=0.1).train()
    model.blocks[1].mlp = Fragile(model.blocks[1].mlp, is_backward=is_backward)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = None if folder is None else attach(model, optimizer, folder=folder, every=5, strict=True, **options)
    for step, batch in enumerate(IDS):
        ids = batch.clone()
        ids[0, 0] = 60 if step == ILL_STEP else 0
        logits = model(ids)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        # A loop that leaves ill steps out: its weights stay sound.
        if all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None):
            optimizer.step()
        optimizer.zero_grad()
        if probe is not None:
            probe.step(loss)
    if probe is not None:
        probe.close()
    return model, probe


def test_the_operation_is_named_with_its_step_and_block_and_training_is_the_same(tmp_path: Path) -> None:
    plain, _ = trained(None)
    model, probe = trained(tmp_path / "run", replay=True)
    for (name, one), (_, other) in zip(plain.state_dict().items(), model.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    events = probe.recording.table("events")
    told = events[events["kind"] == "nonfinite_origin"]
    assert told["step"].tolist() == [ILL_STEP]
    assert "'log' in module 'blocks.1.mlp'" in told["sentence"].iloc[0]
    rows = probe.recording.table("identities")
    assert rows[["check", "block", "branch", "module_path"]].to_numpy().tolist() == [
        ["nonfinite_origin", 1, "mlp", "blocks.1.mlp"]
    ]
    finding = next(f for f in diagnose(probe.recording) if f.code == "nonfinite")
    assert (finding.block, finding.severity) == (1, "error")


def test_without_being_asked_nothing_is_kept(tmp_path: Path) -> None:
    _, probe = trained(tmp_path / "run")
    assert "nonfinite_origin" not in set(probe.recording.table("events")["kind"])


def test_a_step_that_is_not_kept_any_longer_is_said() -> None:
    replay = Replay(NanoGPT("pre"))
    origin, told = replay.explain(3)
    assert origin is None
    assert told == "Step 3 is not kept any longer: it could not be run again."


@pytest.mark.parametrize("weight", [1.0, math.nan])
def test_weights_come_back_whatever_the_step_began_with(weight: float) -> None:
    model = NanoGPT("pre").train()
    replay = Replay(model)
    with torch.no_grad():
        model.head.weight[0, 0] = weight
    replay.keep(0, (IDS[0],), {})
    with torch.no_grad():
        model.head.weight[0, 0] = 7.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    origin, told = replay.explain(0)
    assert (origin is None) == (weight == 1.0)
    assert told == (
        ""
        if origin is not None
        else "Step 0 was run again from its own weights, batch and random state, and was finite: not reproduced."
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
