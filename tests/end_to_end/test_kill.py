"""kill -9 takes nothing that was flushed: a real process, really killed at a moment it signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording

LAST = 12  # the step after which the child says that it may be killed
EVERY = 3

CHILD = """
import sys
sys.path.insert(0, {tests!r})
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach

torch.set_num_threads(1)
torch.manual_seed(0)
model = NanoGPT(dropout=0.1).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
probe = attach(model, optimizer, every={every}, folder={folder!r}, strict=True)
step = 0
while True:
    loss = loss_of(model, batch_of(model, seed=step))
    if {when!r} == "in a backward" and step == {last} + 1:
        loss.register_hook(lambda gradient: (print("kill", flush=True), sys.stdin.read()))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    probe.step(loss, n_tokens=24)
    print(step, loss.item(), flush=True)
    if {when!r} == "at any moment" and step == {last}:
        print("kill", flush=True)
    step += 1
"""


def killed(folder: Path, when: str) -> list[float]:
    """Run the child, kill it with SIGKILL when it says so; return the losses of the steps it had closed by then."""
    code = CHILD.format(tests=str(Path(__file__).parents[1]), every=EVERY, folder=str(folder), when=when, last=LAST)
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    losses = []
    with child.stdin, child.stdout:
        for line in child.stdout:
            if line.strip() == "kill":
                break
            losses.append(float(line.split()[1]))
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(timeout=60) == -signal.SIGKILL
    return losses


@pytest.mark.parametrize("when", ["in a backward", "at any moment"])
def test_a_killed_run_loads_with_every_flushed_step(when: str, tmp_path: Path) -> None:
    losses = killed(tmp_path / "run", when)

    recording = Recording.load(tmp_path / "run")

    assert len(losses) == LAST + 1
    assert recording.manifest["status"] == "open"
    assert recording.anatomy.is_complete
    steps = recording.table("steps")
    # LAST is a sampled step, at which everything before it is flushed.
    assert LAST % EVERY == 0
    assert steps["step"].tolist()[: LAST + 1] == list(range(LAST + 1))
    assert steps["loss"].tolist()[: LAST + 1] == losses
    whole = recording.table("activations", steps=range(LAST + 1))
    assert sorted(whole["step"].unique()) == list(range(0, LAST + 1, EVERY))
    assert whole.groupby("step").size().nunique() == 1
    assert len(recording.table("parameters", steps=LAST)) == len(list(NanoGPT().parameters()))


def test_a_killed_run_is_continued_behind_its_last_step(tmp_path: Path) -> None:
    killed(tmp_path / "run", "in a backward")
    model = NanoGPT().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    with attach(model, optimizer, every=EVERY, folder=tmp_path / "run", resume=True, strict=True) as probe:
        for _ in range(4):
            loss = loss_of(model, batch_of(model))
            loss.backward()
            optimizer.step()
            probe.step(loss)

    steps = probe.recording.table("steps")["step"].tolist()
    assert steps == list(range(LAST + 5))
    assert probe.recording.manifest["status"] == "closed"
    assert sorted(path.suffix for path in (tmp_path / "run").iterdir()) == [".json"] + [".parquet"] * 5
