"""A spike in training: attributed from the weights and batches that are kept, and training goes on as if nobody had looked."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from oracles import VOCABULARY, gpt2
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import Tensor, nn

SPIKE = 18  # the step after whose update block 1 is thrown off: the loss spikes at the next


def trained(model: nn.Module, folder: Path | None, *, n_batches: int = 1) -> Recording | None:
    """Train a little, and throw one block off; probed where there is a folder."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    probe = None
    for step in range(-30, SPIKE + 3):
        if step == 0 and folder is not None:
            probe = attach(model, optimizer, every=50, folder=folder, blame=True)
        losses = []
        for _ in range(n_batches):
            ids = torch.randint(8, (4, 1), generator=generator).expand(4, 8).contiguous()
            loss = model(input_ids=ids, labels=ids).loss / n_batches
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
        if step == SPIKE:
            with torch.no_grad():
                for parameter in model.transformer.h[1].parameters():
                    parameter.add_(3 * torch.randn_like(parameter))
        optimizer.zero_grad()
        if probe is not None:
            probe.step(torch.stack(losses).sum())
    if probe is None:
        return None
    probe.close()
    return probe.recording


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, dict[str, Tensor], dict[str, Tensor]]:
    """A recording, the weights of the probed run, and those of the same run without a probe."""
    torch.manual_seed(0)
    model = gpt2(dropout=0.1).train()
    twin = copy.deepcopy(model)
    torch.manual_seed(1)
    recording = trained(model, tmp_path_factory.mktemp("run") / "r")
    torch.manual_seed(1)
    trained(twin, None)
    assert recording is not None
    return recording, model.state_dict(), twin.state_dict()


def test_the_block_thrown_off_is_named_at_the_spike(
    run: tuple[Recording, dict[str, Tensor], dict[str, Tensor]],
) -> None:
    rows = run[0].table("attributions")
    updates = rows[rows["method"] == "update"]

    assert updates["step"].unique().tolist() == [SPIKE + 1]
    assert updates.groupby("block")["value"].sum().idxmax() == 1
    assert updates["value"].sum() == pytest.approx(float(updates["total"].iloc[0]), rel=0.05)
    assert (rows["method"] == "batch").sum() == 1


def test_an_event_says_so_in_a_sentence(run: tuple[Recording, dict[str, Tensor], dict[str, Tensor]]) -> None:
    events = run[0].table("events")
    told = events[events["kind"] == "blame"]["sentence"].tolist()

    assert len(told) == 1
    assert f"Spike of step {SPIKE + 1}" in told[0]
    assert "block 1" in told[0]
    assert "not causality" in told[0]


def test_training_goes_on_bit_for_bit(run: tuple[Recording, dict[str, Tensor], dict[str, Tensor]]) -> None:
    _, probed, bare = run

    assert all(torch.equal(probed[name], bare[name]) for name in bare)


def test_a_step_of_several_micro_batches_is_attributed_as_one(tmp_path: Path) -> None:
    recording = trained(gpt2().train(), tmp_path / "r", n_batches=2)

    assert recording is not None
    rows = recording.table("attributions")
    assert rows[rows["method"] == "update"].groupby("block")["value"].sum().idxmax() == 1


def test_a_loss_that_the_output_does_not_give_is_told_and_does_not_stop_training(tmp_path: Path) -> None:
    class Headless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = gpt2()

        def forward(self, ids: Tensor) -> Tensor:
            return self.inside.transformer(ids).last_hidden_state

    model = Headless().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    ids = torch.randint(VOCABULARY, (4, 8))
    with attach(model, optimizer, every=50, folder=tmp_path / "r", blame=True) as probe:
        for step in range(20):
            loss = model(ids).square().mean() * (1 if step < 18 else 100)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)

    events = probe.recording.table("events")
    assert "not attributed" in events[events["kind"] == "blame"]["sentence"].iloc[0]


def test_without_triggers_there_is_nothing_to_blame(tmp_path: Path) -> None:
    model = gpt2()

    with pytest.raises(ProbeError, match="no spike is looked for"):
        attach(model, None, folder=tmp_path / "r", blame=True, triggered=0)
