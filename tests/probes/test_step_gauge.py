"""The numbers of a step besides its tensors: clipping, loss scale, skipped steps, groups and memory."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import pytest
import torch
from oracles import ORACLES, NanoGPT, batch_of, gradients, loss_of, rms
from rheoscope.probes import clipping
from rheoscope.probes.recorder import Probe, attach
from torch import nn
from torch.nn.utils import clip_grad, clip_grad_norm_
from torch.optim import SGD, AdamW


def norm(model: nn.Module) -> float:
    """Return the norm of the whole gradient in float64."""
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))


def untouched() -> bool:
    """Return whether torch's clip functions are its own; probes that other tests left open are gone by then."""
    gc.collect()
    return (
        clip_grad._clip_grads_with_norm_.__module__ == nn.utils.clip_grads_with_norm_.__module__ == clip_grad.__name__
    )


@pytest.mark.parametrize("limit", [0.1, 1e6])
def test_clipping_is_seen_also_by_a_function_that_was_imported_before(limit: float, tmp_path: Path) -> None:
    before_all = untouched()
    model = NanoGPT().train()
    optimizer = SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=2, folder=tmp_path / "run", strict=True) as probe:
        before, after = [], []
        for step in range(3):
            loss_of(model, batch_of(model, seed=step)).backward()
            before.append(norm(model))
            clip_grad_norm_((p for p in model.parameters()), limit)
            after.append(norm(model))
            optimizer.step()
            optimizer.zero_grad()
            probe.step()

    steps = probe.recording.table("steps")
    assert steps["unclipped_gradient_norm"].tolist() == pytest.approx(before, rel=1e-6)
    assert steps["clip_coefficient"].tolist() == pytest.approx([min(1.0, limit / (b + 1e-6)) for b in before], rel=1e-6)
    assert steps["gradient_norm"].tolist()[::2] == pytest.approx(after[::2], rel=1e-6)
    assert math.isnan(steps["gradient_norm"][1]), "gradients are read in sampled steps alone"
    assert untouched() == before_all


def test_a_step_without_clipping_has_no_norm_before_it(tmp_path: Path) -> None:
    model, other = NanoGPT().train(), NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        for each in (model, other):
            loss_of(each, batch_of(each)).backward()
        clip_grad_norm_(other.parameters(), 0.1)
        probe.step()

    steps = probe.recording.table("steps")
    assert steps[["unclipped_gradient_norm", "clip_coefficient"]].isna().all().all()


def test_clipping_in_parts_is_joined_and_two_probes_see_their_own(tmp_path: Path) -> None:
    before_all = untouched()
    models = [NanoGPT().train(), NanoGPT().train()]
    probes = [attach(m, every=1, folder=tmp_path / str(i), strict=True) for i, m in enumerate(models)]
    expected = []
    for model in models:
        loss_of(model, batch_of(model)).backward()
        expected.append(norm(model))
        parameters = list(model.parameters())
        clip_grad_norm_(parameters[:5], 0.05)
        nn.utils.clip_grads_with_norm_(parameters[5:], 1e9, nn.utils.get_total_norm([p.grad for p in parameters[5:]]))
    for probe in probes:
        assert not untouched()
        probe.step()
        probe.close()

    found = [probe.recording.table("steps").iloc[0] for probe in probes]
    assert [row["unclipped_gradient_norm"] for row in found] == pytest.approx(expected, rel=1e-5)
    assert all(0 < row["clip_coefficient"] < 1 for row in found)
    assert untouched() == before_all


def test_a_probe_that_is_dropped_unclosed_watches_no_more(tmp_path: Path) -> None:
    gc.collect()
    n_before = len(clipping._watchers)
    model = NanoGPT()
    probe = attach(model, folder=tmp_path / "run", strict=True)
    assert len(clipping._watchers) == n_before + 1

    del probe, model
    gc.collect()

    assert len(clipping._watchers) == n_before


def test_what_another_library_put_in_torchs_place_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = attach(NanoGPT(), folder=tmp_path / "run", strict=True)
    monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", print)
    probe.close()

    assert clip_grad._clip_grads_with_norm_ is print


def scaled_run(model: nn.Module, folder: Path, optimizer: torch.optim.Optimizer, *, poison: int | None = None) -> Probe:
    """Train three steps under a gradient scaler; in step ``poison`` a gradient is infinite."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    with attach(model, optimizer, every=1, folder=folder, scaler=scaler, strict=True) as probe:
        for step in range(3):
            loss = loss_of(model, batch_of(model, seed=step))
            scaler.scale(loss).backward()
            if step == poison:
                model.head.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            probe.step(loss)
    return probe


OPTIMIZERS = {
    "SGD": lambda m: SGD(m.parameters(), lr=1e-3),
    "AdamW": lambda m: AdamW(m.parameters(), lr=1e-3),
    "fused AdamW": lambda m: AdamW(m.parameters(), lr=1e-3, fused=True),
    "fused SGD": lambda m: SGD(m.parameters(), lr=1e-3, fused=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_those_without_the_loss_scale(name: str, tmp_path: Path) -> None:
    model = NanoGPT().train()
    oracle = ORACLES["nanoGPT"]
    expected = [rms(g) for g in gradients(model, oracle.states, batch_of(model, seed=0))]
    loss_of(model, batch_of(model, seed=0)).backward()
    weight = rms(model.head.weight.grad)
    whole = norm(model)
    model.zero_grad()

    recording = scaled_run(model, tmp_path / "run", OPTIMIZERS[name](model)).recording

    rows = recording.table("activations", steps=0)
    states = rows[(rows["site"] == "state") & (rows["direction"] == "backward")].sort_values("depth")
    assert states["rms"].tolist() == pytest.approx(expected, rel=1e-5)
    paths = recording.table("gradient_paths", steps=0)
    assert ((paths["skip_rms"] > 0.01 * min(expected)) & (paths["skip_rms"] < 100 * max(expected))).all()
    parameters = recording.table("parameters", steps=0).set_index("name")
    assert parameters.loc["head.weight", "gradient_rms"] == pytest.approx(weight, rel=1e-5)
    steps = recording.table("steps")
    assert steps["gradient_norm"][0] == pytest.approx(whole, rel=1e-5)
    # Two sound steps double the scale; each step has the scale of its own backward.
    assert steps["loss_scale"].tolist() == [1024.0, 1024.0, 2048.0]
    assert steps["is_skipped"].tolist() == [False, False, False]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_leaves_out_is_marked(name: str, tmp_path: Path) -> None:
    model = NanoGPT().train()

    recording = scaled_run(model, tmp_path / "run", OPTIMIZERS[name](model), poison=1).recording

    assert recording.table("steps")["is_skipped"].tolist() == [False, True, False]
    assert recording.table("steps")["loss_scale"].tolist() == [1024.0, 1024.0, 512.0]
    assert recording.table("events").empty, "a scaler that searches is no fault"
    moved = recording.table("parameters", steps=1)["update_rms"].dropna()
    assert (moved == 0).all()
    assert (recording.table("parameters", steps=2)["update_rms"].dropna() > 0).any()


def test_without_a_scaler_nothing_is_said_of_one(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()

    assert probe.recording.table("steps")[["loss_scale", "is_skipped"]].isna().all().all()


def test_every_group_has_its_rate_and_its_gradient_norm(tmp_path: Path) -> None:
    model = NanoGPT().train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = AdamW(
        [{"params": matrices, "lr": 0.01, "weight_decay": 0.1}, {"params": vectors, "lr": 0.02}], weight_decay=0
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    expected = []
    with attach(model, optimizer, every=2, folder=tmp_path / "run", strict=True) as probe:
        for _ in range(2):
            loss_of(model, batch_of(model)).backward()
            expected += [nn.utils.get_total_norm([p.grad for p in part]).item() for part in (matrices, vectors)]
            optimizer.step()
            optimizer.zero_grad()
            probe.step()
            schedule.step()

    groups = probe.recording.table("groups").sort_values(["step", "group"])
    assert groups["step"].tolist() == [0, 0, 1, 1]
    assert groups["lr"].tolist() == [0.01, 0.02, 0.005, 0.01]
    assert groups["weight_decay"].tolist() == [0.1, 0.0, 0.1, 0.0]
    assert groups["gradient_norm"].tolist()[:2] == pytest.approx(expected[:2], rel=1e-6)
    assert groups["gradient_norm"].isna().tolist() == [False, False, True, True]


def test_memory_is_that_of_this_process_on_sampled_steps(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=2, folder=tmp_path / "run", strict=True) as probe:
        for _ in range(2):
            loss_of(model, batch_of(model)).backward()
            probe.step()

    memory = probe.recording.table("steps")["memory_bytes"]
    assert 50e6 < memory[0] < 1e12
    assert math.isnan(memory[1])
