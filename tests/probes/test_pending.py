"""Sampled steps wait for their writing, never more of them than a kill may take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes import pending as pending_module
from rheoscope.probes.host_copies import HostCopy, ScalarCopies
from rheoscope.probes.pending import MOST_STEPS
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording


def test_sixteen_sampled_steps_are_held_at_most(tmp_path: Path) -> None:
    model = NanoGPT(n_blocks=1).train()
    lags = []
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(40):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            probe.step(loss)
            written = Recording.load(tmp_path / "run").table("activations", columns=["step"])["step"]
            lags.append(step - int(written.max()) if len(written) else step + 1)

    assert max(lags) == MOST_STEPS - 1
    assert min(lags) == 0


def test_ten_seconds_are_waited_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = NanoGPT(n_blocks=1).train()
    now = [100.0]
    monkeypatch.setattr(pending_module.time, "monotonic", lambda: now[0])
    n_written = []
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        for _ in range(3):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            now[0] += 6.0
            probe.step(loss)
            n_written.append(Recording.load(tmp_path / "run").table("activations")["step"].nunique())

    assert n_written == [0, 2, 2]


def test_numbers_are_those_of_when_the_copy_began() -> None:
    first, second = torch.arange(6.0).reshape(2, 3), torch.tensor(7.0, dtype=torch.bfloat16)
    copy = HostCopy([first, second])
    first.zero_()

    arrays = copy.arrays()

    assert [a.tolist() for a in arrays] == [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]], 7.0]
    assert copy.is_here


def test_an_absent_scalar_stays_absent() -> None:
    copies = ScalarCopies({"loss": torch.tensor([[2.5]]), "norm": None})

    assert json.dumps(copies.values(), sort_keys=True) == '{"loss": 2.5, "norm": null}'


def test_a_site_that_shows_what_another_measured_has_the_same_numbers(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    rows = probe.recording.table("activations")
    back = rows[rows["direction"] == "backward"].sort_values("depth")
    # A pre-norm add hands its gradient to both operands: that of a write is that of the state after it.
    writes = back[back["site"] == "write"]["rms"].tolist()
    states = back[(back["site"] == "state") & (back["depth"] > 0)]["rms"].tolist()
    assert writes == states
