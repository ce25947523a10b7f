"""A probe leaves training alone bit for bit, and no fault of one part loses what another measured."""

from __future__ import annotations

import copy
import io
import logging
import random
from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from oracles import ORACLES, NanoGPT, Plain, batch_of, loss_of, rms
from rheoscope.probes.errors import BatchError, DiscoveryError
from rheoscope.probes.hooked import Hook
from rheoscope.probes.recorder import Probe, attach
from rheoscope.probes.taps import MOST_READINGS
from torch import Tensor, nn


def train(
    model: nn.Module, n_steps: int, folder: Path | None, *, every: int = 1, autocast: bool = False
) -> list[float]:
    """Train with AdamW, under a probe where there is a folder; return the losses."""
    torch.manual_seed(3)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    probe = None if folder is None else attach(model, optimizer, every=every, folder=folder, strict=True)
    losses = []
    for step in range(n_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, batch_of(model, seed=step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if probe:
            probe.step(loss)
    if probe:
        probe.close()
        assert len(probe.recording.table("activations", steps=0)) > 0
    return losses


def tiny_training(model: nn.Module, folder: Path, n_steps: int = 2, **options: object) -> Probe:
    """Train without an optimizer for a few steps; return the closed probe."""
    model.train()
    with attach(model, every=1, folder=folder, **options) as probe:
        for _ in range(n_steps):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            probe.step(loss)
    return probe


def kinds(probe: Probe) -> list[str]:
    """Return the kinds of the events recorded."""
    return probe.recording.table("events")["kind"].tolist()


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "post-norm encoder", "nanoGPT"])
def test_twenty_steps_of_adamw_with_dropout_are_the_same_bit_for_bit(name: str, tmp_path: Path) -> None:
    bare = ORACLES[name].make(dropout=0.2)
    probed = copy.deepcopy(bare)

    expected = train(bare, 20, None)
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    found = train(probed, 20, tmp_path / "run", every=1)

    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), probed.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]


def test_training_under_autocast_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    bare = NanoGPT(dropout=0.2)
    probed = copy.deepcopy(bare)

    assert train(probed, 5, tmp_path / "run", autocast=True) == train(bare, 5, None, autocast=True)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), probed.parameters(), strict=True))


def test_a_closed_probe_leaves_no_hook(tmp_path: Path) -> None:
    model = NanoGPT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=1, folder=tmp_path / "run") as probe:
        loss_of(model.train(), batch_of(model)).backward()
        optimizer.step()
        probe.step()
        assert any(module._forward_hooks for module in model.modules())

    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_hooks_are_on_in_sampled_steps_alone(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=2, folder=tmp_path / "run") as probe:
        hooked = []
        for _ in range(4):
            loss = loss_of(model, batch_of(model))
            hooked.append(bool(model.head._forward_hooks or model.norm._forward_hooks or model.norm._forward_pre_hooks))
            loss.backward()
            probe.step(loss)

    assert hooked == [True, False, True, False]
    assert sorted(probe.recording.table("activations")["step"].unique()) == [0, 2]
    assert probe.recording.table("steps")["is_sampled"].tolist() == [True, False, True, False]


def test_micro_batches_of_a_step_are_told_apart(tmp_path: Path) -> None:
    model = NanoGPT().train()
    place = [("norm", "in")]
    batches = [batch_of(model, seed=seed) for seed in (1, 2)]
    expected = [rms(oracles.gradients(model, place, batch)[0]) for batch in batches]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with attach(model, optimizer, every=1, folder=tmp_path / "run", strict=True) as probe:
        for batch in batches:
            loss_of(model, batch).backward()
        whole = rms(model.head.weight.grad)
        optimizer.step()
        probe.step()

    rows = probe.recording.table("activations")
    last = rows[(rows["depth"] == 4) & (rows["site"] == "state") & (rows["direction"] == "backward")]
    assert last.sort_values("micro_step")["rms"].tolist() == pytest.approx(expected, rel=1e-6)
    assert probe.recording.table("steps")["micro_batches"].tolist() == [2]
    parameters = probe.recording.table("parameters").set_index("name")
    assert parameters.loc["head.weight", "gradient_rms"] == pytest.approx(whole, rel=1e-6)


def test_two_forwards_before_one_backward_keep_their_gradients_apart(tmp_path: Path) -> None:
    model = NanoGPT("post").train()
    batches = [batch_of(model, seed=seed) for seed in (1, 2)]
    apart = []
    for number, batch in enumerate(batches):
        with attach(model, every=1, folder=tmp_path / str(number), strict=True) as probe:
            loss_of(model, batch).backward()
            probe.step()
        apart.append(probe.recording.table("gradient_paths"))

    with attach(model, every=1, folder=tmp_path / "both", strict=True) as probe:
        (loss_of(model, batches[0]) + loss_of(model, batches[1])).backward()
        probe.step()

    found = probe.recording.table("gradient_paths")
    for number, expected in enumerate(apart):
        mine = found[found["micro_step"] == number]
        for column in ("skip_gain", "skip_rms", "branch_rms", "cosine"):
            assert mine[column].tolist() == pytest.approx(expected[column].tolist(), rel=1e-6)


def test_forwards_in_eval_mode_are_not_recorded(tmp_path: Path) -> None:
    model = NanoGPT()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        model.train()
        loss_of(model, batch_of(model)).backward()
        model.eval()
        with torch.no_grad():
            loss_of(model, batch_of(model))
            model(oracles.ids(1)[:, :2])
        probe.step()

    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
    assert probe.recording.table("activations")["micro_step"].unique().tolist() == [0]


def test_a_copy_of_a_probed_model_is_not_counted(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        average = copy.deepcopy(model).train()
        loss_of(average, batch_of(model)).backward()
        probe.step()

    assert probe.recording.table("steps")["micro_batches"].tolist() == [1]
    assert all(isinstance(hook, Hook) for hook in average._forward_hooks.values())


def test_a_copied_optimizer_does_not_measure(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=1, folder=tmp_path / "run") as probe:
        loss_of(model, batch_of(model)).backward()
        copy.deepcopy(optimizer).step()
        probe.step()

    assert kinds(probe) == ["no_update"]


def test_a_probed_model_is_saved_and_read_back_whole(tmp_path: Path) -> None:
    model = NanoGPT().train()
    file = io.BytesIO()
    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        torch.save(model, file)
        names = list(model.state_dict())
        probe.step()
    file.seek(0)

    read = torch.load(file, weights_only=False)

    assert list(read.state_dict()) == names == list(NanoGPT().state_dict())
    assert torch.equal(loss_of(read, batch_of(model)), loss_of(model, batch_of(model)))


def test_an_exception_in_a_forward_leaves_no_half_measured_micro_batch(tmp_path: Path) -> None:
    model = NanoGPT().train()
    batch = batch_of(model)

    def fail(module: nn.Module, args: object) -> None:
        raise MemoryError("no room")

    with attach(model, every=1, folder=tmp_path / "run", strict=True) as probe:
        loss_of(model, batch).backward()
        handle = model.blocks[1].register_forward_pre_hook(fail)
        with pytest.raises(MemoryError):
            loss_of(model, batch)
        handle.remove()
        loss_of(model, batch).backward()
        probe.step()

    rows = probe.recording.table("activations")
    rows = rows[rows["site"] != "bias"]
    assert sorted(rows["micro_step"].unique()) == [0, 1]
    assert rows.groupby("micro_step").size().nunique() == 1


def test_a_run_that_raises_is_closed_and_says_so(tmp_path: Path) -> None:
    model = NanoGPT().train()
    probe = attach(model, every=1, folder=tmp_path / "run")

    def loop() -> None:
        with probe:
            loss = loss_of(model, batch_of(model))
            loss.backward()
            probe.step(loss)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop()

    assert probe.recording.manifest["status"] == "closed"
    assert kinds(probe) == ["interrupted"]
    assert len(probe.recording.table("steps")) == 1


def test_closing_twice_is_closing_once(tmp_path: Path) -> None:
    probe = tiny_training(NanoGPT(), tmp_path / "run")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir())

    probe.close()

    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "run").iterdir()) == before


def test_a_step_after_close_is_refused_and_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probe = tiny_training(NanoGPT(), tmp_path / "run")

    probe.step(1.0)

    assert "Expected an open probe, got probe.step after close" in caplog.text
    assert len(probe.recording.table("steps")) == 2


def test_a_model_without_a_residual_stream_is_said_and_its_loss_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probe = tiny_training(Plain(), tmp_path / "run", n_steps=5)

    events = probe.recording.table("events")
    assert events["kind"].tolist() == ["fault"]
    assert events["sentence"][0].startswith("Expected a model whose blocks add what they compute to a running sum, got")
    assert probe.recording.table("steps")["loss"].notna().sum() == 5
    assert len([record for record in caplog.records if record.name == "rheoscope"]) == 1


def test_strict_raises_what_a_model_without_a_residual_stream_gives(tmp_path: Path) -> None:
    with pytest.raises(DiscoveryError, match="Expected a model whose blocks add"):
        tiny_training(Plain(), tmp_path / "run", strict=True)

    assert not any(module._forward_hooks for module in Plain().modules())


def test_a_batch_that_the_model_rejects_raises_the_models_own_error(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run") as probe:
        with pytest.raises(IndexError):
            model(torch.full((1, 4), 10_000))
        loss = loss_of(model, batch_of(model))
        loss.backward()
        probe.step(loss)

    events = probe.recording.table("events")
    assert events["kind"].tolist() == ["fault"]
    assert "Expected a batch that the model accepts, got (Tensor(1, 4) int64 on cpu)" in events["sentence"][0]
    assert len(probe.recording.table("activations")) > 0, "discovery is tried again on the next forward"
    with pytest.raises(BatchError), attach(model, folder=tmp_path / "strict", strict=True):
        model(torch.full((1, 4), 10_000))


@pytest.mark.parametrize("n_forwards", [3, MOST_READINGS + 2])
def test_without_probe_step_all_forwards_are_one_step(
    n_forwards: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = NanoGPT(n_blocks=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, folder=tmp_path / "run") as probe:
        for _ in range(n_forwards):
            loss_of(model, batch_of(model)).backward()
            optimizer.step()

    recording = probe.recording
    assert kinds(probe) == ["never_stepped"]
    assert "Call probe.step(loss) in the training loop." in caplog.text
    assert recording.table("activations")["micro_step"].nunique() == min(n_forwards, MOST_READINGS)
    assert len(recording.table("parameters")) == len(list(model.parameters()))
    assert recording.table("steps").empty


def test_a_last_forward_without_step_is_kept_and_named(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run") as probe:
        for _ in range(2):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            if probe.recording.table("steps").empty:
                probe.step(loss)

    assert kinds(probe) == ["open_step"]
    assert sorted(probe.recording.table("activations")["step"].unique()) == [0, 1]


def test_a_probe_on_a_module_that_is_never_called_says_so(tmp_path: Path) -> None:
    model = NanoGPT().eval()
    with attach(model, every=1, folder=tmp_path / "run") as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step(1.5)

    assert kinds(probe) == ["never_forwarded"]
    assert probe.recording.table("steps")["loss"].tolist() == [1.5]


def test_nan_in_the_first_forward_is_recorded_and_training_goes_on(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with torch.no_grad():
        model.tokens.weight[:] = torch.nan

    probe = tiny_training(model, tmp_path / "run")

    rows = probe.recording.table("activations", steps=0)
    states = rows[rows["site"] == "state"]
    assert (states["nonfinite"] > 0).all()
    assert states["rms"].isna().all()
    assert probe.recording.table("steps")["loss"].isna().all()
    assert not probe.recording.anatomy.is_complete
    assert "not finite" in probe.recording.anatomy.problems[0]


def test_nan_in_one_weight_matrix_of_the_first_forward_is_located(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with torch.no_grad():
        model.blocks[1].mlp[0].weight[0, 0] = torch.inf

    probe = tiny_training(model, tmp_path / "run", n_steps=1)

    rows = probe.recording.table("activations")
    states = rows[(rows["site"] == "state") & (rows["direction"] == "forward")].sort_values("depth")
    assert (states["nonfinite"] > 0).tolist() == [False, False, False, False, True]


def test_two_backwards_through_one_forward_are_named(tmp_path: Path) -> None:
    model = NanoGPT().train()
    with attach(model, every=1, folder=tmp_path / "run") as probe:
        loss = loss_of(model, batch_of(model))
        loss.backward(retain_graph=True)
        loss.backward()
        probe.step(loss)

    assert kinds(probe) == ["repeated_backward"]


def test_a_step_without_optimizer_step_is_named(tmp_path: Path) -> None:
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, optimizer, every=1, folder=tmp_path / "run") as probe:
        loss = loss_of(model, batch_of(model))
        loss.backward()
        probe.step(loss)
        optimizer.step()

    assert kinds(probe) == ["no_update"]


def test_a_fault_in_one_part_keeps_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, numbers: object) -> dict[str, object]:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("rheoscope.probes.columns.ActivationColumns.paths_of", fail)
    probe = tiny_training(NanoGPT(), tmp_path / "run", n_steps=60)

    recording = probe.recording
    assert recording.table("steps")["loss"].notna().sum() == 60
    assert recording.table("activations")["step"].nunique() == 60
    assert recording.table("parameters")["step"].nunique() == 60
    assert recording.table("gradient_paths").empty
    assert recording.table("events")["sentence"].str.startswith("ZeroDivisionError in the probe's").all()


def test_faults_in_hooks_do_not_reach_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: object, row: int, tensor: Tensor, flags: int = 0) -> None:
        raise ValueError("a bug of ours")

    monkeypatch.setattr("rheoscope.probes.statistics.Sheet.measure", fail)
    probe = tiny_training(NanoGPT(), tmp_path / "run", n_steps=3)

    assert len(probe.recording.table("steps")) == 3
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) <= 2
    with pytest.raises(ValueError, match="a bug of ours"):
        tiny_training(NanoGPT(), tmp_path / "strict", strict=True)


@pytest.mark.parametrize(
    ("loss", "tokens", "sentence"),
    [
        (torch.ones(4), 10, "Expected a scalar loss in probe.step(loss), got Tensor(4,)"),
        ("high", 10, "Expected a scalar loss in probe.step(loss), got str 'high'"),
        (1.0, 2**70, "Expected a whole number of tokens"),
        (1.0, "many", "Expected a whole number of tokens"),
    ],
)
def test_a_strange_scalar_costs_itself_alone(loss: object, tokens: object, sentence: str, tmp_path: Path) -> None:
    model = NanoGPT()
    with attach(model, folder=tmp_path / "run") as probe:
        probe.step(0.5, n_tokens=3, batch_id="a\ud800")
        probe.step(loss, n_tokens=tokens)
        probe.step(torch.tensor([0.25]), n_tokens=5)

    steps = probe.recording.table("steps")
    assert steps["step"].tolist() == [0, 1, 2]
    assert steps["loss"].tolist()[0::2] == [0.5, 0.25]
    assert steps["batch_id"][0] == "a?"
    assert sentence in probe.recording.table("events")["sentence"].str.cat()


def test_a_loss_that_is_scaled_in_place_after_the_step_is_recorded_as_given(tmp_path: Path) -> None:
    with attach(NanoGPT(), folder=tmp_path / "run") as probe:
        loss = torch.tensor(3.0)
        probe.step(loss)
        loss /= 10

    assert probe.recording.table("steps")["loss"].tolist() == [3.0]


def test_the_recording_of_an_open_probe_holds_every_step(tmp_path: Path) -> None:
    with attach(NanoGPT(), every=100, folder=tmp_path / "run") as probe:
        for step in range(7):
            probe.step(float(step))
        assert probe.recording.table("steps")["loss"].tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert probe.recording.manifest["status"] == "open"
