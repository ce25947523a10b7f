"""Weights, gradients and updates of parameters against float64, and the four states of a gradient."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from oracles import NanoGPT, batch_of, gpt2, loss_of, rms
from rheoscope.probes.kernels import by_c
from rheoscope.probes.recorder import attach
from torch import Tensor, nn


def test_rows_are_those_of_float64_around_the_step(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        gradients = {name: p.grad.double().clone() for name, p in model.named_parameters()}
        optimizer.step()
        after = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        optimizer.zero_grad()
        probe.step()

    rows = probe.recording.table("parameters").set_index("name")
    assert sorted(rows.index) == sorted(before)
    for name in before:
        row = rows.loc[name]
        assert row["n"] == before[name].numel()
        assert row["weight_rms"] == pytest.approx(rms(after[name]), rel=1e-6)
        assert row["gradient_rms"] == pytest.approx(rms(gradients[name]), rel=1e-6)
        assert row["gradient_absmax"] == float(gradients[name].abs().max())
        assert row["update_rms"] == pytest.approx(rms(after[name] - before[name]), rel=1e-5)
        assert row["update_ratio"] == pytest.approx(rms(after[name] - before[name]) / rms(after[name]), rel=1e-5)


def test_roles_and_places_are_found_by_what_parameters_do(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    rows = probe.recording.table("parameters").set_index("name")
    assert rows.loc["tokens.weight", ["role", "block"]].tolist() == ["embedding", -1]
    assert rows.loc["blocks.1.norm_1.weight", ["role", "block"]].tolist() == ["gain", 1]
    assert rows.loc["blocks.1.norm_1.bias", ["role", "block"]].tolist() == ["norm_bias", 1]
    assert rows.loc["blocks.0.attention.qkv.weight", ["role", "branch"]].tolist() == ["weight", "attention"]
    assert rows.loc["blocks.0.mlp.2.bias", ["role", "branch"]].tolist() == ["bias", "mlp"]


def test_a_tied_parameter_counts_once(tmp_path: Path) -> None:
    model = gpt2().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    names = probe.recording.table("parameters")["name"].tolist()
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


class Partly(NanoGPT):
    """A decoder with a parameter that is unused, one that is frozen and one whose gradient is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))
        self.muted = nn.Parameter(torch.ones(()))
        self.norm.weight.requires_grad_(False)

    def forward(self, ids: Tensor, targets: Tensor | None = None, split: None = None) -> Tensor:
        return super().forward(ids, targets) + 0 * self.muted


def test_frozen_no_gradient_a_zero_gradient_and_a_value_are_four_things(tmp_path: Path) -> None:
    model = Partly().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    rows = probe.recording.table("parameters").set_index("name")
    states = rows.loc[["unused", "norm.weight", "muted", "head.weight"], "gradient_state"].tolist()
    assert states == ["none", "frozen", "zero", "value"]
    assert rows["gradient_rms"].isna().sum() == 2
    assert rows.loc["muted", "gradient_rms"] == 0.0
    assert rows["update_rms"].isna().all(), "without an optimizer there is no update to see"


def test_a_sparse_gradient_is_read_by_its_values(tmp_path: Path) -> None:
    dense, sparse = NanoGPT().train(), NanoGPT().train()
    sparse.load_state_dict(dense.state_dict())
    sparse.tokens.sparse = True
    found = []
    for number, model in enumerate((dense, sparse)):
        with attach(model, every=1, folder=tmp_path / str(number), strict=True) as probe:
            loss_of(model, batch_of(model)).backward()
            probe.step()
        rows = probe.recording.table("parameters").set_index("name")
        found.append(rows.loc["tokens.weight", ["gradient_state", "gradient_rms", "gradient_absmax"]].tolist())

    assert sparse.tokens.weight.grad.is_sparse
    assert found[1][0] == "value"
    assert found[1][1:] == pytest.approx(found[0][1:], rel=1e-6)


def test_a_bias_share_needs_the_bias_that_the_branch_adds(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with torch.no_grad():
        model.blocks[0].attention.out.bias.fill_(0.5)
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    rows = probe.recording.table("activations")
    bias = rows[(rows["site"] == "bias") & (rows["depth"] == 1)].iloc[0]
    assert bias["rms"] == pytest.approx(0.5)
    assert bias["module_path"] == "blocks.0.attention.out.bias"
    assert model.blocks[0].attention.out.bias.numel() == oracles.WIDTH


@pytest.mark.parametrize("has_kernel", [True, False])
def test_the_direction_of_a_bias_is_followed_from_sampled_step_to_sampled_step(
    has_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_kernel:
        monkeypatch.setattr(by_c, "kernel", None)
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    kept, expected = [], []
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(3):
            loss_of(model, batch_of(model, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step()
            kept.append(model.blocks[0].mlp[2].bias.detach().double().clone())
    expected = [torch.cosine_similarity(a, b, 0).item() for a, b in itertools.pairwise(kept)]

    rows = probe.recording.table("parameters").sort_values("step").set_index("name")
    found = rows.loc["blocks.0.mlp.2.bias", "direction_cosine"].tolist()
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx(expected, abs=1e-6)
    assert rows.loc["blocks.0.mlp.2.weight", "direction_cosine"].isna().all()


def test_a_bias_is_recorded_as_it_was_in_the_forward(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=10.0)
    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for step in range(2):
            expected = rms(model.blocks[1].mlp[2].bias)
            loss_of(model, batch_of(model, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step()
            after = rms(model.blocks[1].mlp[2].bias)

    rows = probe.recording.table("activations", steps=1)
    found = rows.loc[(rows["site"] == "bias") & (rows["depth"] == 4), "rms"].tolist()
    assert found == pytest.approx([expected], rel=1e-6)
    assert found != pytest.approx([after], rel=1e-2)


def test_row_35_gradients_that_are_kept_elsewhere_are_not_known(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    rows, events = probe.recording.table("parameters"), probe.recording.table("events")
    assert rows["gradient_state"].isna().all()
    assert rows["gradient_rms"].isna().all()
    assert rows["weight_rms"].notna().all()
    assert events["kind"].tolist() == ["gradients_gone"]


def test_row_35_a_parameter_of_which_nothing_is_here_has_no_size(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()
        # As a library leaves it that keeps the parameter elsewhere between steps.
        model.norm.weight.data = torch.empty(0)
        model.norm.weight.grad = None
        probe._parameters._open()
        probe._parameters.read_alone()
        numbers = probe._parameters.take()

    from rheoscope.probes.parameter_columns import ParameterColumns

    columns = ParameterColumns(probe._parameters, probe.anatomy)
    found = columns.of([1], numbers.sums.numpy()[None], np.array([numbers.states], dtype=object))
    row = found["name"].to_pylist().index("norm.weight")
    assert found["weight_rms"][row].as_py() is None
    assert found["gradient_state"][row].as_py() == "none"
