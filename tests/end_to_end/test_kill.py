"""kill -9 takes nothing that was flushed: a real process, really killed at a moment it signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.pending import MOST_STEPS
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording

LAST = 60  # the step after which the child says that it may be killed
EVERY = 3
SURE = 15 * EVERY  # the sixteenth sampled step, at which all of them are written
N_MOMENTS = 20

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
    steps = recording.table("steps")["step"].tolist()
    assert steps == list(range(len(steps)))
    assert len(steps) > SURE
    assert recording.table("steps")["loss"].tolist() == losses[: len(steps)]
    whole = recording.table("activations")
    sampled = sorted(whole["step"].unique())
    assert sampled == list(range(0, SURE + 1, EVERY))
    assert whole.groupby("step").size().nunique() == 1
    assert len(recording.table("parameters", steps=SURE)) == len(list(NanoGPT().parameters()))


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
    assert steps == list(range(len(steps)))
    assert len(steps) > SURE + 4
    assert probe.recording.manifest["status"] == "closed"
    assert {path.suffix for path in (tmp_path / "run").iterdir()} == {".json", ".parquet"}


MOMENTS = """
import os, random, select, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.discovery import discover
from rheoscope.probes.recorder import attach

torch.set_num_threads(1)
moments = random.Random({seed})
model = NanoGPT(n_blocks=1).train()
anatomy = discover(model, batch_of(model))

def train(folder, told):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    probe = attach(model, optimizer, every=1, folder=folder, anatomy=anatomy, strict=True)
    while True:
        loss = loss_of(model, batch_of(model))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step(loss)
        os.write(told, b".")

for number in range({n}):
    heard, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train({folder!r} + "/" + str(number), told)
        finally:
            os._exit(1)
    os.close(told)
    select.select([heard], [], [], 60)
    time.sleep(moments.uniform(0, 0.8))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    n_closed = 0
    while part := os.read(heard, 65536):
        n_closed += len(part)
    os.close(heard)
    print(n_closed, os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_runs_killed_at_random_moments_lose_the_unwritten_steps_at_most(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    code = MOMENTS.format(tests=str(Path(__file__).parents[1]), seed=seed, n=N_MOMENTS, folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    told = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]

    assert len(told) == N_MOMENTS
    assert {status for _, status in told} == {-signal.SIGKILL}
    for number, (n_closed, _) in enumerate(told):
        recording = Recording.load(tmp_path / str(number))
        for table in ("steps", "parameters", "gradient_paths", "activations"):
            steps = sorted(recording.table(table)["step"].unique())
            assert steps == list(range(len(steps))), (seed, number, table)
            assert n_closed - MOST_STEPS < len(steps) + 1 <= n_closed + 2, (seed, number, table)
        sizes = recording.table("activations").groupby("step").size()
        assert sizes.nunique() <= 2, "only a flush that was cut leaves out a table's later part"
    assert max(n_closed for n_closed, _ in told) > MOST_STEPS, "some run was long enough to be written"
