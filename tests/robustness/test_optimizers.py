"""How far a step moved each parameter, under optimizers that nobody knows, against copies of the weights in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of, rms
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.optim import Optimizer

from robustness.loops import events, parameters, train


class Signed(Optimizer):
    """In the manner of Lion: the sign of a moving average; writes into the gradient."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.mul_(1 - 0.1 * group["lr"]).sub_(group["lr"] * (0.9 * average + 0.1 * p.grad).sign())
                    average.lerp_(p.grad, 0.01)
                    p.grad.mul_(0)


class Preconditioned(Optimizer):
    """In the manner of Shampoo: the gradient between two roots of its own second moments; replaces ``.data``."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    matrix = p.grad.reshape(len(p), -1)
                    values, vectors = torch.linalg.eigh(matrix @ matrix.T + 1e-3 * torch.eye(len(p)))
                    direction = (vectors * values**-0.25) @ vectors.T @ matrix
                    p.data = p - group["lr"] * direction.reshape(p.shape)


class ScheduleFree(Optimizer):
    """In the manner of schedule-free SGD: weights lie between a fast sequence and its mean."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-1, "k": 0})

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    fast = self.state[p].setdefault("fast", p.clone())
                    mean = self.state[p].setdefault("mean", p.clone())
                    fast.sub_(p.grad, alpha=group["lr"])
                    mean.lerp_(fast, 1 / group["k"])
                    p.copy_(0.1 * fast + 0.9 * mean)


class Shrinking(torch.optim.SGD):
    """Moves the weights itself before it hands on to the optimizer that it extends."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)
        return super().step(closure)


def by_axes(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices of the blocks, and all other parameters."""
    inside = [p for p in model.blocks.parameters() if p.dim() == 2]
    return inside, [p for p in model.parameters() if all(p is not other for other in inside)]


def muon_and_adam(model: nn.Module) -> list[Optimizer]:
    """Return Muon for the matrices and AdamW for the rest."""
    matrices, rest = by_axes(model)
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.AdamW(rest, lr=1e-3)]


MAKERS: dict[str, Callable[[nn.Module], Sequence[Optimizer]]] = {
    "Muon and AdamW": muon_and_adam,
    "two AdamW": lambda m: [torch.optim.AdamW(part, lr=1e-3) for part in by_axes(m)],
    "fused AdamW": lambda m: [torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True)],
    "foreach AdamW, amsgrad": lambda m: [torch.optim.AdamW(m.parameters(), lr=1e-3, amsgrad=True, foreach=True)],
    "SGD with momentum": lambda m: [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True)],
    "Adafactor": lambda m: [torch.optim.Adafactor(m.parameters(), lr=1e-2)],
    "Lion-like": lambda m: [Signed(m.parameters())],
    "Shampoo-like": lambda m: [Preconditioned(m.parameters())],
    "schedule-free-like": lambda m: [ScheduleFree(m.parameters())],
    "a step inside a step": lambda m: [Shrinking(m.parameters(), lr=0.1)],
}


@pytest.mark.parametrize("name", MAKERS)
def test_update_ratio_is_that_of_copies_of_the_weights(name: str, tmp_path: Path) -> None:
    torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from now on its class calls hooks at every step
    model = NanoGPT().train()
    optimizers = MAKERS[name](model)
    gradients: dict[str, float] = {}
    before: dict[str, Tensor] = {}
    probe = attach(model, list(optimizers), every=1, folder=tmp_path / "run", strict=True)
    with probe:
        for step in range(3):
            loss_of(model, batch_of(model, seed=step)).backward()
            before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
            gradients = {name: rms(p.grad) for name, p in model.named_parameters()}
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            probe.step()

    table = parameters(probe, 2)
    for key, p in model.named_parameters():
        expected = rms(p.double() - before[key]) / rms(p)
        assert table.loc[key, "update_ratio"] == pytest.approx(expected, rel=2e-4), key
        assert table.loc[key, "gradient_rms"] == pytest.approx(gradients[key], rel=1e-5), key
    assert probe.recording.table("groups", steps=2)["group"].tolist() == list(range(len(optimizers)))
    assert events(probe) == []


def test_a_step_that_computes_its_own_gradients_is_measured(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch_of(model))
        loss.backward()
        return loss

    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for _ in range(2):
            before = model.head.weight.detach().double().clone()
            loss = optimizer.step(closure)
            moved, gradient = rms(model.head.weight.double() - before), rms(model.head.weight.grad)
            optimizer.zero_grad()
            probe.step(loss)

    row = parameters(probe, 1).loc["head.weight"]
    assert row["update_rms"] == pytest.approx(moved, rel=1e-5)
    assert row["gradient_rms"] == pytest.approx(gradient, rel=1e-5)


def test_parameters_in_no_optimizer_are_said_and_never_called_unmoved(tmp_path: Path) -> None:
    model = NanoGPT()
    inside, rest = by_axes(model)

    probe = train(model, tmp_path / "run", [torch.optim.Muon(inside, lr=0.02)])

    table = parameters(probe)
    others = [name for name, p in model.named_parameters() if all(p is not other for other in inside)]
    said = [s for s in probe.recording.manifest["not_measured"] if "in none of the optimizers" in s]
    assert len(said) == 1
    assert said[0].startswith(f"{len(rest)} parameters ('tokens.weight', ")
    assert table.loc[others, "update_rms"].isna().all(), "another optimizer may move them: 0 would be a guess"
    assert table.loc[others, ["gradient_rms", "weight_rms"]].notna().all().all()
    assert table.drop(others)["update_rms"].notna().all()


def test_an_optimizer_that_does_not_step_leaves_its_parameters_read(tmp_path: Path) -> None:
    model = NanoGPT().train()
    first, second = muon_and_adam(model)
    with attach(model, [first, second], every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        second.step()
        expected = rms(model.blocks[0].mlp[0].weight.grad)
        probe.step()

    row = parameters(probe).loc["blocks.0.mlp.0.weight"]
    assert row["gradient_rms"] == pytest.approx(expected, rel=1e-6)
    assert row[["update_rms"]].isna().all()
    assert probe.recording.table("steps")["gradient_norm"].notna().all()


def test_gradients_of_an_optimizer_that_was_skipped_and_cleared_are_unknown(tmp_path: Path) -> None:
    model = NanoGPT().train()
    first, second = muon_and_adam(model)
    with attach(model, [first, second], every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        second.step()
        first.zero_grad()
        second.zero_grad()
        probe.step()

    table, owned = parameters(probe), {id(p) for group in first.param_groups for p in group["params"]}
    mine = [name for name, p in model.named_parameters() if id(p) in owned]
    assert table.loc[mine, "gradient_state"].isna().all(), "not known is not none"
    assert set(table.drop(mine)["gradient_state"]) == {"value"}
    assert probe.recording.table("steps")["gradient_norm"].isna().all(), "a part is not the whole"
    assert probe.recording.table("groups")["gradient_norm"].notna().tolist() == [False, True]


def test_an_optimizer_inside_a_wrapper_is_measured(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = NanoGPT().train()
    called, wrapped = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    assert not hasattr(wrapped, "_optimizer_step_pre_hooks")
    with attach(called, wrapped, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(2):
            before = model.head.weight.detach().double().clone()
            for micro in range(2):
                with accelerator.accumulate(called):
                    accelerator.backward(loss_of(called, batch_of(model, seed=2 * step + micro)))
                    wrapped.step()
                    wrapped.zero_grad()
            moved = rms(model.head.weight.double() - before)
            probe.step()

    assert parameters(probe, 1).loc["head.weight", "update_rms"] == pytest.approx(moved, rel=2e-4)
    assert probe.recording.table("steps")["micro_batches"].tolist() == [2, 2]


def test_an_optimizer_that_the_probe_does_not_know_is_said_once(tmp_path: Path) -> None:
    model = NanoGPT().train()
    known, used = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    with attach(model, known, every=1, folder=tmp_path / "run") as probe:
        for _ in range(5):
            loss_of(model, batch_of(model)).backward()
            used.step()
            used.zero_grad()
            probe.step()

    assert events(probe) == ["no_update"]


def test_no_optimizer_at_all_is_none(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, [], every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    assert events(probe) == []
    assert parameters(probe)["gradient_rms"].notna().all()
