"""Activations and gradients of every state, and the two paths of a gradient, against autograd.grad."""

from __future__ import annotations

import math
from pathlib import Path

import oracles
import pandas as pd
import pytest
import torch
from oracles import ORACLES, NanoGPT, batch_of, gradients, loss_of, rms
from rheoscope.probes.batches import Arguments
from rheoscope.probes.discovery import discover
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

DROPOUT = 0.1


def recorded(model: nn.Module, batch: dict[str, Tensor], folder: Path, seed: int = 5) -> Recording:
    """Record one step of ``model``, discovery included, with the random state that ``seed`` gives."""
    model.train()
    torch.manual_seed(seed)
    with attach(model, every=1, folder=folder, strict=True) as probe:
        loss = loss_of(model, batch)
        loss.backward()
        probe.step(loss)
    return probe.recording


def profile(recording: Recording, site: str, direction: str) -> list[float]:
    """Return the RMS of a site by depth."""
    rows = recording.table("activations")
    chosen = rows[(rows["site"] == site) & (rows["direction"] == direction)].sort_values("depth")
    return [float(value) for value in chosen["rms"]]


@pytest.mark.parametrize("name", ORACLES)
def test_gradient_of_every_state_is_that_of_autograd(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name]
    model = oracle.make(dropout=DROPOUT).train()
    batch = batch_of(model)
    torch.manual_seed(5)
    expected = [rms(gradient) for gradient in gradients(model, oracle.states, batch)]

    found = profile(recorded(model, batch, tmp_path / "run"), "state", "backward")

    assert found == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize("name", ORACLES)
def test_every_state_is_that_of_the_forward(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name]
    model = oracle.make(dropout=DROPOUT).train()
    batch = batch_of(model)
    torch.manual_seed(5)
    expected = [rms(state) for state in oracles.captured(model, oracle.states, batch)[0]]

    found = profile(recorded(model, batch, tmp_path / "run"), "state", "forward")

    assert found == pytest.approx(expected, rel=1e-6, abs=0)


@pytest.mark.parametrize("name", [name for name, oracle in ORACLES.items() if oracle.sums])
def test_skip_gain_is_the_norms_gain_of_the_gradient_in_float64(name: str, tmp_path: Path) -> None:
    oracle = ORACLES[name]
    model = oracle.make(dropout=DROPOUT).train().double()
    batch = batch_of(model)
    torch.manual_seed(5)
    both = gradients(model, [*oracle.states[1:], *oracle.sums], batch)
    states, sums = both[: len(oracle.sums)], both[len(oracle.sums) :]
    expected = [rms(below) / rms(above) for above, below in zip(states, sums, strict=True)]

    gains = recorded(model, batch, tmp_path / "run").table("gradient_paths").sort_values("depth")["skip_gain"]

    assert gains.tolist() == pytest.approx(expected, rel=1e-6)
    assert math.prod(gains) == pytest.approx(math.prod(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["pre", "inplace", "parallel"])
def test_the_skip_path_without_norms_passes_all_of_the_gradient(kind: str, tmp_path: Path) -> None:
    model = NanoGPT(kind)

    gains = recorded(model, batch_of(model), tmp_path / "run").table("gradient_paths")["skip_gain"]

    assert len(gains) == (2 if kind == "parallel" else 4)
    assert (gains == 1.0).all()


@pytest.mark.parametrize("kind", ["pre", "post"])
def test_skip_and_branch_share_of_the_gradient_are_those_of_autograd(kind: str, tmp_path: Path) -> None:
    model = NanoGPT(kind, dropout=DROPOUT).double().train()
    batch = batch_of(model)
    split: list[tuple[Tensor, Tensor]] = []
    torch.manual_seed(5)
    loss = model(**batch, split=split)
    skips = torch.autograd.grad(loss, [skip for skip, _ in split], retain_graph=True)
    reads = torch.autograd.grad(loss, [read for _, read in split])

    paths = recorded(model, batch, tmp_path / "run").table("gradient_paths").sort_values("depth")

    assert paths["skip_rms"].tolist() == pytest.approx([rms(skip) for skip in skips], rel=1e-6)
    assert paths["branch_rms"].tolist() == pytest.approx([rms(read) for read in reads], rel=1e-6)
    cosines = [torch.cosine_similarity(s.flatten(), r.flatten(), 0).item() for s, r in zip(skips, reads, strict=True)]
    assert paths["cosine"].tolist() == pytest.approx(cosines, abs=1e-6)


def test_in_place_adds_are_measured_before_they_are_overwritten(tmp_path: Path) -> None:
    inplace, plain = NanoGPT("inplace"), NanoGPT("pre")
    plain.load_state_dict(inplace.state_dict())
    batch = batch_of(plain)

    found = recorded(inplace, batch, tmp_path / "inplace").table("activations")
    expected = recorded(plain, batch, tmp_path / "plain").table("activations")

    states = found[found["site"] == "state"].merge(expected, on=["depth", "site", "direction"], suffixes=("", "_plain"))
    assert sorted(states[states["direction"] == "forward"]["depth"]) == [0, 1, 2, 3, 4]
    # Of the sum between the two branches of a block hooks see only a copy, whose gradient is not the sum's.
    assert sorted(states[states["direction"] == "backward"]["depth"]) == [0, 2, 4]
    assert states["rms"].tolist() == pytest.approx(states["rms_plain"].tolist())


class Checkpointed(NanoGPT):
    """nanoGPT whose blocks are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(dropout=DROPOUT)
        self.reentrant = reentrant
        self.is_on = True

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        x = self.drop(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=self.reentrant) if self.is_on else block(x)
        return oracles.cross_entropy(self.head(self.norm(x)), ids if targets is None else targets)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_row(reentrant: bool, tmp_path: Path) -> None:
    model = Checkpointed(reentrant)
    batch = batch_of(model)
    found = recorded(model, batch, tmp_path / "checkpointed")
    model.is_on = False
    model.zero_grad()

    expected = recorded(model, batch, tmp_path / "plain")

    for table in ("activations", "gradient_paths"):
        pd.testing.assert_frame_equal(found.table(table), expected.table(table), rtol=1e-6)


def test_recomputation_belongs_to_the_forward_whose_backward_runs(tmp_path: Path) -> None:
    model = Checkpointed(reentrant=True).train()
    first, second = batch_of(model, seed=1), batch_of(model, seed=2)
    torch.manual_seed(5)
    with attach(model, every=1, folder=tmp_path / "both", strict=True) as probe:
        losses = [loss_of(model, first), 100 * loss_of(model, second)]
        losses[0].backward()
        losses[1].backward()
        probe.step()

    states = probe.recording.table("activations")
    states = states[(states["site"] == "state") & (states["direction"] == "backward")]
    by_micro = states.groupby("micro_step")["rms"]
    assert by_micro.size().tolist() == [5, 5]
    assert by_micro.min()[1] > 10 * by_micro.max()[0]


class Shared(nn.Module):
    """One block called several times, as in ALBERT."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.tokens = nn.Embedding(oracles.VOCABULARY, oracles.WIDTH)
        self.block = oracles.Block("pre", 0.0)
        self.head = nn.Linear(oracles.WIDTH, oracles.VOCABULARY)
        self.reentrant = reentrant

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids)
        for _ in range(3):
            x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return oracles.cross_entropy(self.head(x), targets)


def test_a_block_called_three_times_has_three_states(tmp_path: Path) -> None:
    model = Shared()
    batch = batch_of(model)
    states = []
    handle = model.block.register_forward_hook(lambda module, args, output: states.append(output))
    expected = [rms(gradient) for gradient in torch.autograd.grad(loss_of(model, batch), states)]
    handle.remove()

    found = profile(recorded(model, batch, tmp_path / "run"), "state", "backward")

    assert len(found) == 7
    assert found[2::2] == pytest.approx(expected, rel=1e-6)


def test_a_recomputed_shared_block_gives_no_gradient_rather_than_another_calls(tmp_path: Path) -> None:
    model = Shared()
    batch = batch_of(model)
    plain = recorded(model, batch, tmp_path / "plain").table("activations")
    model.zero_grad()
    model.reentrant = True

    found = recorded(model, batch, tmp_path / "checkpointed").table("activations")

    keys = ["depth", "site", "direction"]
    both = found.merge(plain, on=keys, suffixes=("", "_plain"))
    assert len(both) == len(found) < len(plain)
    assert both["rms"].tolist() == pytest.approx(both["rms_plain"].tolist(), rel=1e-6)


class Copies(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        name = str(func)
        if "_local_scalar_dense" in name or "is_nonzero" in name or "equal.default" in name:
            self.seen.append(name)
        if "_to_copy" in name and (kwargs or {}).get("device", args[0].device) != args[0].device:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("name", ["GPT-2", "post-norm encoder"])
def test_no_hook_waits_for_the_device(name: str, make: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    model = ORACLES[name].make(dropout=DROPOUT).train()
    batch = batch_of(model)
    optimizer = make(model.parameters(), lr=0.1)
    is_adam = make is torch.optim.AdamW  # it reads its own count of steps

    def loop_step() -> list[str]:
        with Copies() as copies:
            loss_of(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        return copies.seen

    loop_step()
    bare = loop_step()
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        loop_step()
        probe.step()
        probed = loop_step()
        probe.step()

    assert probed == bare
    assert is_adam or bare == []
    assert len(probe.recording.table("activations", steps=1)) > 0


def test_activations_are_freed_after_the_backward(tmp_path: Path) -> None:
    import gc
    import weakref

    model = NanoGPT().train()
    batch = batch_of(model)
    alive: list[weakref.ref[Tensor]] = []
    handle = model.blocks[0].register_forward_hook(lambda module, args, output: alive.append(weakref.ref(output)))
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch).backward()
        gc.collect()
        in_step = [reference() is not None for reference in alive]
        probe.step()
    handle.remove()

    assert len(alive) >= 2
    assert not any(in_step[1:])


def test_hooks_on_a_parameter_that_is_the_state_do_not_pile_up(tmp_path: Path) -> None:
    class Prompt(nn.Module):
        """Returns a parameter as it is: the state 0 of a model without tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, oracles.LENGTH, oracles.WIDTH))

        def forward(self, ids: Tensor) -> Tensor:
            return self.weight

    class Prompted(nn.Module):
        """A decoder over a learned prompt."""

        def __init__(self) -> None:
            super().__init__()
            self.prompt = Prompt()
            self.blocks = nn.ModuleList(oracles.Block("pre", 0.0) for _ in range(2))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.prompt(ids)
            for block in self.blocks:
                x = block(x)
            return x.square().mean()

    model = Prompted().train()
    anatomy = discover(model, Arguments((oracles.ids(),), {}))
    assert anatomy.stacks[0].start is not None
    with attach(model, every=1, folder=tmp_path / "run", strict=True, anatomy=anatomy) as probe:
        for _ in range(3):
            model(oracles.ids()).backward()
            probe.step()
            assert not model.prompt.weight._backward_hooks

    assert len(probe.recording.table("activations", steps=2)) > 0
