"""What holds between tokens is recorded on sampled steps; attention that nobody saw is told once, never a silent gap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import batch_of, gpt2, loss_of
from rheoscope.probes.check_up import examine
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording

KIND = "attention_not_seen"


def trained(folder: Path, *, attention: bool = True) -> Recording:
    """Train three steps, the first and the last sampled."""
    torch.manual_seed(0)
    model = gpt2().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=2, folder=folder, strict=True, attention=attention) as probe:
        for _ in range(3):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return probe.recording


def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide every attention call."""
    monkeypatch.setattr("rheoscope.probes.function_taps.FunctionTaps.counted", lambda _: [])


def test_sampled_steps_hold_attention_and_tokens_and_nothing_is_said_to_be_missing(tmp_path: Path) -> None:
    recording = trained(tmp_path / "run")

    assert sorted(recording.table("attention")["step"].unique()) == [0, 2]
    assert sorted(recording.table("tokens")["step"].unique()) == [0, 2]
    assert KIND not in set(recording.table("events")["kind"])


def test_without_attention_its_bound_and_the_tokens_are_still_recorded(tmp_path: Path) -> None:
    whole, bare = trained(tmp_path / "whole"), trained(tmp_path / "bare", attention=False)

    heads, tokens = bare.table("attention"), bare.table("tokens")

    assert heads[["logit_max", "logit_std", "entropy", "sink_share"]].isna().all(axis=None)
    assert (heads["logit_bound"] * 1.001 >= whole.table("attention")["logit_max"]).all()
    assert tokens["cosine"].tolist() == whole.table("tokens")["cosine"].tolist()


def test_attention_that_was_not_seen_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch)

    events = trained(tmp_path / "run").table("events")

    told = events[events["kind"] == KIND]["sentence"].tolist()
    assert len(told) == 1
    assert told[0].startswith("Attention of 2 of 2 branches is not recorded")


def test_a_check_up_lists_it_as_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch)
    model = gpt2()

    hidden = examine(model, batch_of(model)).manifest["not_measured"]

    assert [sentence for sentence in hidden if sentence.startswith("Attention of 2 of 2 branches")]
