"""No waiting for the device, no memory of activations, no tensors that a CUDA graph will overwrite."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts operations that make the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        self.n += any(name in str(func) for name in ("_local_scalar_dense", "is_nonzero", "aten.equal"))
        return func(*args, **(kwargs or {}))


def test_row_29_no_hook_waits_for_the_device(tmp_path: Path) -> None:
    model = NanoGPT(dropout=0.1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def one_step() -> int:
        with Waits() as waits:
            loss_of(model, batch_of(model)).backward()
            optimizer.step()
            optimizer.zero_grad()
        return waits.n

    handle = model.norm.register_forward_hook(lambda module, args, output: output.mean().item() and None)
    naive = one_step()
    handle.remove()
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        one_step()
        probe.step()
        found = one_step()
        probe.step()

    assert (naive, found) == (1, 0)
    assert len(probe.recording.table("activations", steps=1)) > 0


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device: its next replay overwrites tensors"
)
def test_row_30_numbers_survive_the_next_replay_of_a_cuda_graph(tmp_path: Path) -> None:
    """Statistics are copied inside the graph into memory of the probe's own: see probes/in_graph.py."""
    torch.manual_seed(0)
    eager = NanoGPT().cuda().train()
    graphed = copy.deepcopy(eager)
    found = []
    for name, model in (("eager", eager), ("graphed", torch.compile(graphed, mode="reduce-overhead"))):
        with attach(model, every=1, folder=tmp_path / name, strict=True) as probe:
            for seed in range(4):
                batch = {name: tensor.cuda() for name, tensor in batch_of(eager, seed=seed).items()}
                loss_of(model, batch).backward()
                probe.step()
        found.append(probe.recording.table("activations").set_index(["step", "depth", "site", "direction"])["rms"])
    one, other = (series.sort_index() for series in found)
    assert one.index.equals(other.index)
    assert (one - other).abs().max() <= 1e-4 * one.abs().max()


def test_row_31_nothing_of_a_forward_is_kept_after_its_backward(tmp_path: Path) -> None:
    model = NanoGPT().train()
    alive: list[weakref.ref[Tensor]] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> None:
        alive.append(weakref.ref(output))

    kept: list[Tensor] = []
    handles = [model.blocks[0].register_forward_hook(watch)]
    handles.append(model.blocks[0].register_forward_hook(lambda module, args, output: kept.append(output.mean())))
    loss = loss_of(model, batch_of(model))
    gc.collect()
    assert kept[0].grad_fn is not None, "a naive statistic keeps the graph of its forward"
    loss.backward()
    handles.pop().remove()
    kept.clear()
    del loss

    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        gc.collect()
        assert [reference() for reference in alive] == [None] * len(alive)
        probe.step()
    handles[0].remove()
    assert len(alive) >= 2
