"""Whatever breaks inside a probe, on its disk or in its clock: training ends with the same weights, bit for bit."""

from __future__ import annotations

import copy
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import oracles
import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes import clipping
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import ProbeError, RecordingError
from rheoscope.probes.kernels import by_c
from rheoscope.probes.log import Log
from rheoscope.probes.recorder import Probe, attach
from rheoscope.probes.recording import Recording
from torch import nn
from torch.nn.utils import clip_grad

from robustness.injection import WORDS, called_in, functions, raising
from robustness.loops import events, same

START = NanoGPT(n_blocks=1, dropout=0.1).train()
ANATOMY = discover(START, batch_of(START))

# Called by torch or by the loop itself, with nothing of ours around them: they call what is guarded, and nothing else.
OUTERMOST = {
    "clipping.ClipWatch._see",
    "clipping._shown",
    "faults.Faults.guard",
    "function_mode.WatchMode.__torch_function__",
    "function_taps.FunctionTaps._seen",
    "hooked.Hook.__call__",
    "probe.Probe._close",
    "probe.Probe._ends",
    "probe.Probe.close",
    "probe.Probe.step",
    "tap.Tap._see_node",
}
# What they take off stays on where they do nothing.
REMOVERS = {
    "clipping.ClipWatch.close",
    "clipping._put_back",
    "clipping._unwatch",
    "door.Door.close",
    "function_mode.take_off",
    "function_taps.FunctionTaps.detach",
    "hooked.Hooked.remove",
    "hooked._HookedModule.remove",
    "optimizers.Optimizers.close",
    "relations.RelationTaps.detach",
    "running.Running.detach",
    "step_gauge.StepGauge.close",
    "taps.Taps.detach",
}


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Take away what a probe that was broken on purpose could not."""
    yield
    while torch._C._len_torch_function_stack():
        torch.overrides._pop_mode()
    clipping._watchers.clear()
    clipping._put_back()


def train(
    folder: Path | None, n_steps: int = 2, before: Callable[[int], None] = lambda step: None, **options: object
) -> tuple[nn.Module, torch.optim.Optimizer, Probe | None, Callable[[], None]]:
    """Prepare a training with all that a probe looks at; return model, optimizer, probe if any, and the loop to run."""
    model = copy.deepcopy(START)
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    options = {"anatomy": ANATOMY, "every": 1, "scaler": scaler} | options
    probe = None if folder is None else attach(model, optimizer, folder=folder, **options)
    return model, optimizer, probe, lambda: _loop(model, optimizer, scaler, probe, n_steps, before)


def _loop(
    model: nn.Module, optimizer: object, scaler: object, probe: Probe | None, n_steps: int, before: Callable
) -> None:
    for step in range(n_steps):
        before(step)
        loss = loss_of(model, batch_of(model, seed=step))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if probe:
            probe.step(loss)
    if probe:
        probe.close()


def trained(folder: Path | None, **options: object) -> tuple[nn.Module, Probe | None]:
    """Run the whole training; return the model and the probe."""
    model, _, probe, loop = train(folder, **options)
    loop()
    return model, probe


@pytest.fixture(scope="module")
def expected() -> nn.Module:
    """What training without a probe ends with."""
    return trained(None)[0]


def test_any_function_of_ours_may_raise_and_training_ends_with_the_same_weights(
    expected: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    codes = called_in(train(tmp_path / "seen")[3])
    ours = {name: function for name, function in functions().items() if function.__code__ in codes}
    assert len(ours) > 200
    assert set(ours) >= OUTERMOST | REMOVERS

    for number, (name, function) in enumerate(sorted(ours.items())):
        if name in OUTERMOST:
            continue
        caplog.clear()
        model, optimizer, _, loop = train(tmp_path / str(number))
        with raising(function):
            loop()

        assert same(model, expected), name
        if name not in REMOVERS:
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), name
            assert not optimizer._optimizer_step_pre_hooks, name
            assert not torch._C._len_torch_function_stack(), name
            assert clip_grad._clip_grads_with_norm_.__module__ == clip_grad.__name__, name
        told = [record for record in caplog.records if WORDS in record.getMessage()]
        assert len(told) == len({record.getMessage() for record in told}), f"{name}: each fault is logged once"
        shutil.rmtree(tmp_path / str(number))
        while torch._C._len_torch_function_stack():
            torch.overrides._pop_mode()
        clipping._watchers.clear()
        clipping._put_back()


# A seam, and the tables that are written although it raises at every call.
SEAMS: dict[str, set[str]] = {
    "statistics.Sheet.measure": {"parameters"},
    "tap.Tap.see": {"parameters"},
    "taps.Taps.begin": {"parameters"},
    "taps.Taps.end": {"activations", "parameters"},
    "taps.Taps.take": set(),
    "hooked._HookedModule._after": {"parameters"},
    "relations.RelationTaps.begin": {"activations", "parameters"},
    "attention.AttentionCalls.counted": {"activations", "parameters"},
    "parameters.ParameterTaps.before_step": {"activations"},
    "parameters.ParameterTaps.after_step": {"activations"},
    "adam.AdamReader.read": {"activations"},
    "step_gauge.StepGauge.scalars": {"activations", "parameters"},
    "step_gauge.StepGauge.updated": {"activations", "parameters"},
    "clipping.ClipWatch._take_in": {"activations", "parameters"},
    "pending.Pending.write": set(),
    "host_copies.HostCopy.arrays": set(),
}


@pytest.mark.parametrize("name", SEAMS)
def test_a_fault_is_recorded_once_and_what_works_goes_on(
    name: str, expected: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, _, probe, loop = train(tmp_path / "run")
    with raising(functions()[name]):
        loop()

    recording = probe.recording
    found = recording.table("events")
    faults = found[found["kind"] == "fault"]["sentence"]
    assert same(model, expected)
    assert faults.str.startswith("RuntimeError in the probe's ").all()
    assert 1 <= len(faults) == faults.nunique()
    assert len([record for record in caplog.records if WORDS in record.getMessage()]) == len(faults)
    if "StepGauge.scalars" not in name:
        assert recording.table("steps")["loss"].notna().sum() == 2
    for table in SEAMS[name]:
        assert len(recording.table(table)) > 0, table


def test_a_fault_that_comes_back_stops_nothing_and_too_many_kinds_are_said(
    expected: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, row: int, tensor: object, flags: int = 0) -> None:
        raise ValueError("always the same" if same_words else f"another, {next(number)}")

    number = itertools.count()
    monkeypatch.setattr("rheoscope.probes.statistics.Sheet.measure", fail)
    for same_words, last_events in ((True, ["fault"]), (False, ["fault"] * 20 + ["gave_up"])):
        model, probe = trained(tmp_path / str(same_words))

        assert same(model, expected)
        assert events(probe) == last_events
        assert probe.recording.table("steps")["loss"].notna().all()
        assert len(probe.recording.table("parameters")) == (2 if same_words else 1) * len(list(model.parameters()))


@pytest.mark.parametrize("name", SEAMS)
def test_strict_raises_the_fault(name: str, tmp_path: Path) -> None:
    _, _, _, loop = train(tmp_path / "run", strict=True)

    with raising(functions()[name]), pytest.raises(RuntimeError, match=WORDS):
        loop()


class BrokenKernel:
    """Stands for a C kernel of which every function fails."""

    def __getattr__(self, name: str) -> object:
        def fail(*_: object) -> None:
            raise MemoryError("no room for the kernel")

        return fail


def test_a_kernel_that_fails_costs_measurements_alone(
    expected: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_c, "kernel", BrokenKernel())
    model, probe = trained(tmp_path / "run")

    assert same(model, expected)
    assert probe.recording.table("events")["sentence"].str.contains("no room for the kernel").any()
    assert probe.recording.table("steps")["loss"].notna().all()


def test_discovery_that_fails_leaves_loss_and_rates(
    expected: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr("rheoscope.probes.probe.discover", fail)
    model, probe = trained(tmp_path / "run", anatomy=None)

    assert same(model, expected)
    assert events(probe) == ["fault"]
    assert probe.recording.table("steps")[["loss", "lr"]].notna().all().all()


def test_a_schedule_that_fails_keeps_the_choice_before_it(expected: nn.Module, tmp_path: Path) -> None:
    def schedule(step: int) -> bool:
        return bool(1 / (1 - step))

    model, probe = trained(tmp_path / "run", schedule=schedule)

    assert same(model, expected)
    assert probe.recording.table("steps")["is_sampled"].tolist() == [True, True]
    assert "ZeroDivisionError" in probe.recording.table("events")["sentence"][0]


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every step at once."""
    monkeypatch.setattr("rheoscope.probes.pending.MOST_STEPS", 1)


N_STEPS = 6


@pytest.mark.usefixtures("_often")
def test_a_folder_that_is_removed_ends_the_recording_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    bare, _ = trained(None, n_steps=N_STEPS)

    model, probe = trained(folder, n_steps=N_STEPS, before=lambda step: shutil.rmtree(folder) if step == 3 else None)

    assert same(model, bare)
    assert caplog.text.count("Expected to go on writing the recording in") == 1
    with pytest.raises(RecordingError):
        _ = probe.recording


@pytest.mark.usefixtures("_often")
def test_a_folder_that_becomes_unwritable_ends_the_recording_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append = Log.append

    def refuse(step: int) -> None:
        def denied(self: Log, name: str, columns: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Log, "append", append if step < 3 else denied)

    bare, _ = trained(None, n_steps=N_STEPS)
    model, _ = trained(tmp_path / "run", n_steps=N_STEPS, before=refuse)

    recording = Recording.load(tmp_path / "run")
    assert same(model, bare)
    assert recording.table("activations")["step"].max() == 2
    assert recording.manifest["status"] == "cut off: the folder could not be written"
    assert caplog.text.count("Make the folder writable and continue with resume=True.") == 1
    with monkeypatch.context(), pytest.raises(ProbeError, match="Expected to go on writing"):
        trained(tmp_path / "strict", n_steps=N_STEPS, before=refuse, strict=True)


@pytest.mark.usefixtures("_often")
def test_a_full_disk_in_the_middle_of_a_write_ends_the_recording_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file itself refuses, after a part of the row has gone to it."""
    stream = Log._stream
    n_written = itertools.count()

    class Full:
        def __init__(self, writer: object) -> None:
            self.writer = writer

        def write_batch(self, batch: object) -> None:
            if next(n_written) > 12:
                raise OSError(28, "No space left on device")
            self.writer.write_batch(batch)

    monkeypatch.setattr(Log, "_stream", lambda self, name, folder: Full(stream(self, name, folder)))
    bare, _ = trained(None, n_steps=N_STEPS)
    model, _ = trained(tmp_path / "run", n_steps=N_STEPS)

    recording = Recording.load(tmp_path / "run")
    assert same(model, bare)
    assert recording.manifest["status"] == "cut off: the disk was full"
    assert 0 < recording.table("activations")["step"].nunique() < N_STEPS


LEFT = """
import os, sys, torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach
model = NanoGPT().train()
probe = attach(model, every=1, folder=sys.argv[1])
for step in range(3):
    loss = loss_of(model, batch_of(model, seed=step))
    loss.backward()
    probe.step(loss)
if os.fork() == 0:
    sys.exit(0)
os.wait()
raise RuntimeError("the loop ends badly")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_program_that_ends_without_close_keeps_every_step(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(oracles.__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", LEFT, str(tmp_path / "run")]

    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    recording = Recording.load(tmp_path / "run")
    assert result.stderr.strip().endswith("RuntimeError: the loop ends badly")
    assert recording.manifest["status"] == "closed"
    assert recording.table("steps")["step"].tolist() == [0, 1, 2]
    assert sorted(recording.table("activations")["step"].unique()) == [0, 1, 2]
    assert recording.table("events")["kind"].tolist() == ["left_open"]


@pytest.mark.parametrize("jump", [-3600.0, 1e6, 0.0])
def test_a_clock_that_jumps_gives_no_negative_time(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare, _ = trained(None, n_steps=N_STEPS)
    clocks = {name: getattr(time, name) for name in ("time", "perf_counter", "monotonic")}

    def shift(step: int) -> None:
        for name, clock in clocks.items():
            monkeypatch.setattr(time, name, lambda clock=clock, by=jump * (step % 2): clock() + by)

    model, probe = trained(tmp_path / "run", n_steps=N_STEPS, before=shift)

    seconds = probe.recording.table("steps")["seconds"]
    assert same(model, bare)
    assert len(seconds) == N_STEPS
    assert (seconds.dropna() >= 0).all()
    assert seconds.isna().sum() == (3 if jump < 0 else 2 if jump > 0 else 0)
    assert events(probe) == []
