"""Generation, evaluation, inference mode, forwards that raise, and transforms: what is no step of training."""

from __future__ import annotations

import copy
from collections import Counter as Count
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, gpt2, ids, loss_of
from rheoscope.probes.discovery import discover
from rheoscope.probes.recorder import attach
from torch import nn

from robustness.loops import Counter, events, rows, same


@pytest.mark.parametrize("is_training", [True, False])
def test_row_21_generation_and_evaluation_are_no_micro_batches(is_training: bool, tmp_path: Path) -> None:
    model = gpt2().train()
    naive = Counter(model)
    model.eval().generate(ids(1)[:, :2], max_new_tokens=4, do_sample=False)
    naive.remove()
    assert naive.calls == [4], "one call a token"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bare = copy.deepcopy(model)

    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(2):
            model.train(is_training).generate(ids(1)[:, :2], max_new_tokens=4, do_sample=False)
            model.eval()
            with torch.no_grad():
                loss_of(model, batch_of(model))
            loss = loss_of(model.train(), batch_of(model, seed=step))
            loss.backward()
            model.train(is_training).generate(ids(1)[:, :2], max_new_tokens=4, do_sample=False)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)

    plain = torch.optim.SGD(bare.parameters(), lr=0.1)
    for step in range(2):
        loss_of(bare.train(), batch_of(bare, seed=step)).backward()
        plain.step()
        plain.zero_grad()
    assert same(model, bare)
    assert probe.recording.table("steps")["micro_batches"].tolist() == [1, 1]
    for table in ("attention", "tokens", "activations"):
        found = probe.recording.table(table)
        assert found["micro_step"].unique().tolist() == [0]
        assert not found.drop(columns=["role"], errors="ignore").duplicated().any()
    states = rows(probe, "state", "forward")
    assert set(states["n"]) == {ids().numel() * 16}


def test_row_22_numbers_outlive_inference_mode(tmp_path: Path) -> None:
    with torch.inference_mode():
        naive = torch.zeros(())
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        naive += 1

    model = NanoGPT().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    anatomy = discover(model, batch_of(model))
    with torch.inference_mode():
        probe = attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True, anatomy=anatomy)
        loss_of(model, batch_of(model))
    with probe:
        for step in range(2):
            loss = loss_of(model, batch_of(model, seed=step))
            loss.backward()
            optimizer.step()
            with torch.inference_mode():
                loss_of(model, batch_of(model))
                probe.step(loss)
            optimizer.zero_grad()

    assert probe.recording.table("steps")["micro_batches"].tolist() == [1, 1]
    assert len(rows(probe, "state", "backward")) == 10
    assert events(probe) == []


def test_row_23_a_forward_that_raises_midway_leaves_nothing_behind(tmp_path: Path) -> None:
    model = NanoGPT().train()
    naive: list[str] = []
    model.register_forward_pre_hook(lambda *_: naive.append("begins"))
    model.register_forward_hook(lambda *_: naive.append("ends"))

    def fail(module: nn.Module, args: object) -> None:
        raise MemoryError("no room")

    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        handle = model.blocks[1].mlp.register_forward_pre_hook(fail)
        naive.clear()
        for _ in range(2):
            with pytest.raises(MemoryError):
                loss_of(model, batch_of(model))
        handle.remove()
        assert naive == ["begins", "begins"], "a plain forward hook is never told of the end"
        assert torch._C._len_torch_function_stack() == 0
        loss_of(model, batch_of(model)).backward()
        probe.step()

    assert probe.recording.table("steps")["micro_batches"].tolist() == [2]
    found = probe.recording.table("activations")
    found = found[found["site"] != "bias"]
    assert found.groupby("micro_step").size().nunique() == 1
    assert sorted(probe.recording.table("attention")["micro_step"].unique()) == [0, 1]


def operations(model: nn.Module, *, strict: bool) -> Count[str]:
    """Return how often each operation is in the exported graph."""
    torch._dynamo.reset()
    graph = torch.export.export(model, (ids(),), strict=strict).graph
    return Count(str(node.target) for node in graph.nodes if node.op == "call_function")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute", "ignore:The tensor attribute")
@pytest.mark.parametrize("strict", [True, False])
def test_row_36_an_exported_graph_holds_nothing_of_a_probe(strict: bool, tmp_path: Path) -> None:
    model = NanoGPT().train()
    expected = operations(model, strict=strict)

    def watch(module: nn.Module, args: object, output: torch.Tensor) -> None:
        module.seen = output.detach().mean()

    handle = model.norm.register_forward_hook(watch)
    naive = operations(model, strict=False)
    handle.remove()
    assert naive["aten.mean.default"] == expected["aten.mean.default"] + 1, "what a naive hook computes is exported too"

    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        found = operations(model, strict=strict)
        probe.step()

    assert found == expected
    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_row_36_transforms_and_traces_are_no_forwards_of_the_loop(tmp_path: Path) -> None:
    model = NanoGPT().train()
    handle = model.norm.register_forward_hook(lambda module, args, output: output.mean().item() and None)
    weights = dict(model.named_parameters())

    def each(batch: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(lambda x: torch.func.functional_call(model, weights, (x[None],)))(batch)

    with pytest.raises(RuntimeError, match="vmap"):
        each(ids())
    handle.remove()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        expected = model.eval()(ids())
        model.train()
        found = each(ids())[:, 0]
        torch.func.grad(lambda p: torch.func.functional_call(model, p, (ids(),)).mean())(weights)
        torch.jit.trace(model, (ids(),), check_trace=False)
        probe.step()

    assert torch.allclose(found, expected, atol=1e-6)
    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
    assert events(probe) == []
