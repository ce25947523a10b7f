"""Hooks and torch.compile: hooks that never fire, graphs compiled anew at every step, graphs that break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from robustness.loops import Counter, events, rows, train

# Warnings that torch's own compiler meets, or raises, while it traces.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def graphs() -> Any:
    """A backend that counts the graphs that it compiles."""
    torch._dynamo.reset()
    return CompileCounterWithBackend("aot_eager")


def run(called: nn.Module, model: nn.Module, n_steps: int = 1) -> None:
    """Run forwards and backwards."""
    for step in range(n_steps):
        loss_of(called, batch_of(model, seed=step)).backward()


def test_row_05_a_model_that_was_compiled_and_run_before_is_seen(graphs: Any, tmp_path: Path) -> None:
    model = NanoGPT().train()
    called = torch.compile(model, backend=graphs)
    run(called, model)
    naive = Counter(model.norm)
    run(called, model)
    naive.remove()
    assert naive.calls == [0], "a hook that comes after the first call is ignored"
    n_graphs = graphs.frame_count

    probe = train(called, tmp_path / "run", n_steps=2)

    assert events(probe)[-1] == "compiled"
    assert rows(probe, "state", "backward").groupby("step").size().tolist()[-1] == 5
    assert graphs.frame_count <= n_graphs + 1


def test_row_06_sampled_steps_take_one_graph_more_and_no_other(graphs: Any, tmp_path: Path) -> None:
    model = NanoGPT().train()
    seen: list[int] = []
    handle = model.norm.register_forward_hook(lambda *_: seen.append(len(seen)))
    naive = CompileCounterWithBackend("aot_eager")
    run(torch.compile(model, backend=naive), model, n_steps=4)
    handle.remove()
    assert naive.frame_count > 2, "a list that grows is another graph at every step"

    torch._dynamo.reset()
    probe = train(torch.compile(model, backend=graphs), tmp_path / "run", n_steps=6, every=2)

    assert graphs.frame_count == 2
    assert sorted(rows(probe, "state", "backward")["step"].unique()) == [0, 2, 4]


def test_row_07_the_graph_of_a_probed_model_does_not_break(graphs: Any, tmp_path: Path) -> None:
    model = NanoGPT().train()
    handle = model.norm.register_forward_hook(lambda module, args, output: output.mean().item() and None)
    naive = CompileCounterWithBackend("aot_eager")
    run(torch.compile(model, backend=naive), model)
    handle.remove()
    assert naive.frame_count > 1, ".item() in a hook breaks the graph"

    torch._dynamo.reset()
    plain = NanoGPT()
    plain.load_state_dict(model.state_dict())
    probe = train(torch.compile(model, backend=graphs, fullgraph=True), tmp_path / "run")
    expected = train(plain, tmp_path / "plain")

    assert graphs.frame_count == 1
    for direction in ("forward", "backward"):
        found, eager = rows(probe, "state", direction), rows(expected, "state", direction)
        assert found["rms"].tolist() == pytest.approx(eager["rms"].tolist(), rel=1e-5)


def test_row_07_an_error_of_ours_inside_a_graph_stays_there(
    graphs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, row: int, tensor: Tensor, flags: int = 0) -> None:
        raise ValueError("a bug of ours")

    model = NanoGPT().train()
    plain = NanoGPT()
    plain.load_state_dict(model.state_dict())
    loss_of(torch.compile(plain.train(), backend="aot_eager"), batch_of(plain)).backward()
    expected = [p.grad for p in plain.parameters()]
    monkeypatch.setattr("rheoscope.probes.statistics.Sheet.measure", fail)
    found: list[Tensor] = []

    def keep(step: int) -> None:
        found[:] = [p.grad.clone() for p in model.parameters() if p.grad is not None]

    probe = train(torch.compile(model, backend=graphs), tmp_path / "run", strict=False, optimizers=[Keeps(model, keep)])

    assert "fault" in events(probe)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Keeps(torch.optim.SGD):
    """An optimizer that only looks."""

    def __init__(self, model: nn.Module, look: Any) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.look = look

    def step(self, closure: object = None) -> None:
        self.look(0)
