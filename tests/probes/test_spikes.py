"""Bundles of spikes and their bisection: what is kept, that training is left alone, and whose change is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import NanoGPT
from rheoscope.command_line import app
from rheoscope.probes.errors import ProbeError, RecordingError
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.spikes.bisection import bisect
from rheoscope.probes.spikes.bundle import Bundle, bundles_in
from torch import nn
from typer.testing import CliRunner

VOCABULARY, SPIKE = 61, 110


def model() -> tuple[NanoGPT, tuple[torch.Tensor, torch.Tensor]]:
    """Return a small model with dropout, and a batch; a factory for the command line too."""
    torch.manual_seed(3)
    ids = torch.randint(VOCABULARY, (2, 8))
    return NanoGPT("pre", dropout=0.1), (ids, ids)


def trained(folder: Path | None, plant: str = "", clip: float | None = None) -> NanoGPT:
    """Train to count, in steps of one, and plant something at step SPIKE."""
    net, _ = model()
    halves = [list(net.blocks.parameters()), [p for n, p in net.named_parameters() if not n.startswith("blocks")]]
    optimizer = torch.optim.AdamW([{"params": half} for half in halves], lr=1e-2)
    probe = None if folder is None else attach(net, optimizer, every=100, folder=folder, bundle=True, strict=True)
    for step in range(SPIKE + 4):
        ids = (torch.randint(VOCABULARY, (4, 1)) + torch.arange(9)) % VOCABULARY
        if step == SPIKE and plant.startswith("batch"):
            ids = torch.randint(VOCABULARY, ids.shape)
        if step == SPIKE and plant == "group":
            optimizer.param_groups[0]["lr"] = 10.0
        if step == SPIKE and plant == "rate":
            for group in optimizer.param_groups:
                group["lr"] = 3.0
        loss = net(ids[:, :-1], ids[:, 1:])
        if plant == "batch, then nan" and step == SPIKE + 2:
            loss = loss * torch.nan
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        if probe is not None:
            probe.step(loss)
    if probe is not None:
        probe.close()
    return net


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for plant in ("batch", "group", "rate"):
        torch.manual_seed(0)
        found[plant] = tmp_path_factory.mktemp("spikes") / plant
        trained(found[plant], plant, clip=0.5)
    return found


@pytest.mark.parametrize(
    ("plant", "kind"), [("batch", "batch"), ("group", "parameter group"), ("rate", "learning rate")]
)
def test_what_was_planted_is_named(runs: dict[str, Path], plant: str, kind: str) -> None:
    net, _ = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    done: list[tuple[int, int]] = []

    found = bisect(runs[plant], net, on_progress=lambda n, total, _: done.append((n, total)))

    assert found.is_reproduced
    assert found.cause is not None
    assert found.cause.kind == kind
    assert found.cause.left < 1 / 3
    assert found.cause.what in found.sentence
    assert done[-1][0] == done[-1][1]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_steps_run_again_give_the_loss_to_rounding(runs: dict[str, Path]) -> None:
    bundle = Bundle.load(bundles_in(runs["rate"])[0])
    recorded = Recording.load(runs["rate"]).table("steps").set_index("step")["loss"]

    assert bisect(bundle, model()[0]).loss == pytest.approx(recorded[bundle.step], rel=1e-6)
    assert [each.loss for each in bundle.steps] == pytest.approx([recorded[each.step] for each in bundle.steps])


def test_training_is_the_same_with_bundles_and_without(tmp_path: Path) -> None:
    weights = []
    for folder in (None, tmp_path / "run"):
        torch.manual_seed(0)
        weights.append(trained(folder, "batch").state_dict())

    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    events = Recording.load(tmp_path / "run").table("events")
    assert events.loc[events["kind"] == "bundle", "sentence"].str.contains(f"spike of step {SPIKE} ").all()


def test_a_loss_that_is_not_finite_has_a_bundle_also_after_a_spike(tmp_path: Path) -> None:
    trained(tmp_path / "run", "batch, then nan")

    assert [path.name for path in bundles_in(tmp_path / "run")] == [f"step-{SPIKE}", f"step-{SPIKE + 2}"]


def test_a_bundle_comes_back_from_disk_as_it_was(runs: dict[str, Path], tmp_path: Path) -> None:
    bundle = Bundle.load(bundles_in(runs["batch"])[0])

    again = Bundle.load(bundle.save(tmp_path / "again"))

    assert (again.step, again.usual_loss, again.names, again.optimizer) == (
        bundle.step, bundle.usual_loss, bundle.names, "AdamW",
    )  # fmt: skip
    assert [each.groups for each in again.steps] == [each.groups for each in bundle.steps]
    assert all(torch.equal(again.weights[name], value) for name, value in bundle.weights.items())
    state: Any = again.state["head.weight"]
    assert torch.equal(state["exp_avg_sq"], bundle.state["head.weight"]["exp_avg_sq"])


def test_another_model_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(ProbeError, match="Expected the model of the run, got one that differs in"):
        bisect(runs["batch"], NanoGPT("pre", n_blocks=3))


@pytest.mark.parametrize("damage", ["", "{}", '{"format": 1, "step": "x"}', '{"format": 9}'])
def test_a_damaged_bundle_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "bundle.json").write_text(damage)

    with pytest.raises(RecordingError, match="Expected a bundle of a spike"):
        Bundle.load(tmp_path)


def test_the_command_names_the_cause(runs: dict[str, Path]) -> None:
    done = CliRunner().invoke(app, ["bisect", str(runs["batch"]), f"{__name__}:model"])

    assert done.exit_code == 0, done.output
    assert "another batch at step 110 itself" in " ".join(done.output.split())
