"""Copies, averages and files of a model that is being probed."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach
from torch import nn
from torch.optim.swa_utils import AveragedModel

from robustness.loops import Counter, events, parameters, same


def saved(model: nn.Module) -> nn.Module:
    """Return the model written by torch.save and read back."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(model: nn.Module) -> nn.Module:
    """Return the model pickled and read back."""
    return pickle.loads(pickle.dumps(model))


def averaged(model: nn.Module) -> nn.Module:
    """Return the copy that an exponential moving average trains along."""
    return AveragedModel(model).module


@pytest.mark.parametrize("copied", [copy.deepcopy, averaged, pickled, saved])
def test_row_24_copies_are_not_counted_and_carry_no_live_hook(copied: Any, tmp_path: Path) -> None:
    naive = NanoGPT()
    counter = Counter(naive)
    if copied in (pickled, saved):
        with pytest.raises((AttributeError, pickle.PicklingError), match=r"local object|Can't (get|pickle)"):
            copied(naive)
    else:
        copied(naive)(batch_of(naive)["ids"])
        assert counter.calls == [1], "the copy calls the hook of the model"

    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        other = copied(model).train()
        loss_of(other, batch_of(other)).backward()
        optimizer.step()
        probe.step()

    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
    assert probe.recording.table("activations")["micro_step"].max() == 0
    assert len(parameters(probe)) == len(list(model.parameters()))
    assert events(probe) == []


def test_row_24_a_model_that_compiled_itself_is_copied_and_saved(tmp_path: Path) -> None:
    model = NanoGPT().train()
    model.compile(backend="eager")
    with attach(model, every=1, folder=tmp_path / "run", strict=True):
        copies = [copy.deepcopy(model), pickled(model)]

    for other in copies:
        assert other._compiled_call_impl is None
        assert same(model, other)


def test_row_25_state_dictionaries_know_nothing_of_a_probe(tmp_path: Path) -> None:
    model, fresh = NanoGPT().train(), NanoGPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        optimizer.step()
        kept, state = model.state_dict(), optimizer.state_dict()
        probe.step()

    assert list(kept) == list(fresh.state_dict())
    fresh.load_state_dict(kept, strict=True)
    other = torch.optim.AdamW(fresh.parameters(), lr=0.1)
    other.load_state_dict(state)
    assert same(model, fresh)
    assert set(state) == {"state", "param_groups"}
