"""A full disk ends the recording with a sentence; training goes on and what was written stays readable."""

from __future__ import annotations

import errno
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.errors import ProbeError
from rheoscope.probes.host_copies import ScalarCopies
from rheoscope.probes.log import Log
from rheoscope.probes.recorder import Probe, attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import FORMAT
from rheoscope.probes.writer import FLUSH_EVERY, Writer

FULL = OSError(errno.ENOSPC, "No space left on device")


def train(folder: Path, n_steps: int, *, resume: bool = False, strict: bool = False) -> tuple[Probe, list[float]]:
    """Train a tiny model under a probe; return the closed probe and the losses."""
    torch.manual_seed(0)
    model = NanoGPT(n_blocks=1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    options = {"resume": resume, "strict": strict, "attention": False}
    with attach(model, optimizer, every=1, folder=folder, **options) as probe:
        for _ in range(n_steps):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
            losses.append(loss.item())
    return probe, losses


def fill_after(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Write every step at once, seven appends each, and make the disk full after ``n`` appends."""
    monkeypatch.setattr("rheoscope.probes.pending.MOST_STEPS", 1)
    append, count = Log.append, iter(range(10**9))

    def limited(self: Log, name: str, columns: object) -> None:
        if next(count) >= n:
            raise FULL
        append(self, name, columns)

    monkeypatch.setattr(Log, "append", limited)


def test_a_full_disk_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, expected = train(tmp_path / "free", 6)
    with monkeypatch.context() as patch:
        fill_after(patch, 17)
        _, losses = train(tmp_path / "run", 6)

    recording = Recording.load(tmp_path / "run")
    assert losses == expected
    assert recording.table("steps")["loss"].tolist() == expected[:2]
    assert recording.manifest["status"] == "cut off: the disk was full"
    assert caplog.text.count("Expected room to write the recording in") == 1
    assert "Free space and continue with resume=True." in caplog.text


def test_a_recording_that_met_a_full_disk_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fill_after(patch, 17)
        train(tmp_path / "run", 6)

    train(tmp_path / "run", 3, resume=True, strict=True)

    recording = Recording.load(tmp_path / "run")
    steps = recording.table("steps")["step"].tolist()
    assert steps == sorted(set(steps))
    assert len(steps) == 5
    assert recording.manifest["status"] == "closed"


def test_strict_raises_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_after(monkeypatch, 17)

    with pytest.raises(ProbeError, match="Expected room to write the recording in"):
        train(tmp_path / "run", 6, strict=True)


def test_a_manifest_that_cannot_be_replaced_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, count = Log.write_manifest, iter(range(10**9))

    def limited(self: Log, manifest: object) -> None:
        if next(count) >= 2:
            raise FULL
        write(self, manifest)

    monkeypatch.setattr(Log, "write_manifest", limited)
    train(tmp_path / "run", 3)

    recording = Recording.load(tmp_path / "run")
    assert recording.manifest["status"] == "open"
    assert recording.anatomy.n_branches == 2
    assert len(recording.table("steps")) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "rheoscope-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full_leaves_a_readable_recording(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n_steps = 80
    _, expected = train(tmp_path / "free", n_steps)

    _, losses = train(small_disk / "run", n_steps)

    recording = Recording.load(small_disk / "run")
    steps = recording.table("steps")
    assert losses == expected
    assert caplog.text.count("Expected room to write the recording in") == 1
    assert 0 < len(steps) < n_steps
    assert steps["loss"].tolist() == expected[: len(steps)]
    assert recording.anatomy.n_branches == 2
    assert len(recording.table("activations", steps=0)) > 0


def test_steps_are_written_at_the_latest_every_so_many(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {"format": FORMAT, "label": ""}, resume=False, strict=True)

    for step in range(FLUSH_EVERY + 3):
        writer.add_step({"step": step}, ScalarCopies({"loss": torch.tensor(float(step))}))

    assert writer.recording.table("steps")["loss"].tolist() == list(range(FLUSH_EVERY))
    writer.close()
    assert writer.recording.table("steps")["loss"].tolist() == list(range(FLUSH_EVERY + 3))


def test_a_step_without_a_loss_has_none(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {"format": FORMAT, "label": ""}, resume=False, strict=True)
    for loss in (torch.tensor(1.0, dtype=torch.bfloat16), None, torch.tensor([[2.0]]), torch.tensor(float("nan"))):
        writer.add_step({"step": 0}, ScalarCopies({"loss": loss}))
    writer.close()

    stored = [v for b in writer.recording._batches("steps", ["loss"]) for v in b.column("loss").to_pylist()]
    assert stored[:3] == [1.0, None, 2.0]
    assert stored[3] != stored[3], "a loss that is NaN is NaN, not absent"


def test_the_first_loss_that_is_not_finite_is_an_event_when_it_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path, {"format": FORMAT, "label": ""}, resume=False, strict=True)
    for step, loss in enumerate((1.0, 2.0, math.inf, 1.0, math.nan)):
        writer.add_step({"step": step}, ScalarCopies({"loss": torch.tensor(loss)}))

    events = writer.recording.table("events")
    assert events.empty, "nothing is read before a flush"
    writer.flush()

    events = writer.recording.table("events")
    assert events["kind"].tolist() == ["nonfinite_loss"]
    assert events["step"].tolist() == [2]
    assert events["sentence"][0].startswith("The loss of step 2 is inf")
    writer.close()


def test_a_run_that_restarts_from_an_older_checkpoint_replaces_what_it_repeats(tmp_path: Path) -> None:
    def record(steps: range, loss: float, *, resume: bool | int) -> None:
        writer = Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=resume, strict=True)
        for step in steps:
            writer.columns("activations", {"step": [step, step], "rms": [loss, loss]})
            writer.add_step({"step": step, "loss": loss}, ScalarCopies({}))
        writer.event(steps[-1], "fault", f"of {loss}")
        writer.close()

    record(range(6), 1.0, resume=False)
    record(range(6, 9), 2.0, resume=True)
    record(range(4, 7), 3.0, resume=4)

    recording = Recording.load(tmp_path / "run")
    assert recording.table("steps")["step"].tolist() == list(range(7))
    assert recording.table("steps")["loss"].tolist() == [1.0] * 4 + [3.0] * 3
    assert recording.table("activations")["rms"].tolist() == [1.0] * 8 + [3.0] * 6
    assert recording.summary("activations", columns=["rms"], buckets=1)["rms_mean"].iloc[0] == 26 / 14
    assert recording.manifest["resumed_at"] == [6, 4]
    sentences = recording.table("events")["sentence"].tolist()
    assert sentences == [
        "The recording was continued at step 4. It had reached step 8: what it held from step 4 on was dropped.",
        "of 3.0",
    ]


def test_what_is_repeated_is_dropped_from_streams_of_a_killed_run_too(tmp_path: Path) -> None:
    first = Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=False, strict=True)
    for step in range(5):
        first.columns("attention", {"step": [step], "logit_max": [1.0]})
    del first  # as if killed

    Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=2, strict=True)

    recording = Recording.load(tmp_path / "run")
    assert recording.table("attention")["step"].tolist() == [0, 1]


def test_step_zero_is_a_step_to_continue_at(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        resume = False if value == 1.0 else 0
        writer = Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=resume, strict=True)
        writer.columns("activations", {"step": [0], "rms": [value]})
        writer.close()

    assert Recording.load(tmp_path / "run").table("activations")["rms"].tolist() == [2.0]


def test_steps_that_only_attention_saw_are_not_numbered_twice(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=False, strict=True)
    writer.columns("attention", {"step": [7], "logit_max": [1.0]})
    del writer  # as if killed before the step's other tables

    assert Writer(tmp_path / "run", {"format": FORMAT, "label": ""}, resume=True, strict=True).first_step == 8
