"""Measure what probes add to a training step: python benchmarks/overhead.py [rounds].

Equal models train side by side in one process, in rounds: plain, under a probe that samples every step, every tenth step or
none, under hooks that only read each tensor once (the limit), and under hooks as most people write them. Two numbers are
given for each: the CPU time inside callbacks over the rest of the step, which says little of the caches, and the CPU time of
the whole loop over that of the plain one in the same round, which is noisier and leaves nothing out.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import machine, show
from rheoscope.probes.kernels import by_c
from rheoscope.probes.recording import Recording
from rich.console import Console
from rich.progress import Progress
from training import Inside, Loop, Setting

SETTINGS = (Setting(6, 256, (4, 128)), Setting(4, 512, (4, 256)))
KINDS = {"every=1": 3, "every=10": 10, "all=1": 3, "all=10": 10, "idle": 10, "control": 3, "naive": 2}  # steps a round
WORDS = {
    "every=1": "full set but exact attention, every step",
    "every=10": "full set but exact attention, every 10th step",
    "all=1": "exact attention as well, every step",
    "all=10": "exact attention as well, every 10th step (the default)",
    "idle": "attached, no step sampled",
    "control": "control: reads the same tensors once",
    "naive": "naive hooks: .item(), full backward hooks; no tokens or attention",
}


def main(n_rounds: int = 6) -> None:
    """Measure both settings and print the tables."""
    torch.set_num_threads(1)
    inside = Inside()
    inside.watch_probes()
    sys.stdout.write(f"Machine: {machine()}; kernel: {'C' if by_c.kernel is not None else 'torch'}\n\n")
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        for number, setting in enumerate(SETTINGS):
            measure(setting, max(3, n_rounds // (1 + number)), Path(folder) / str(number), inside, progress)


def measure(setting: Setting, n_rounds: int, folder: Path, inside: Inside, progress: Progress) -> None:
    """Print the table of one setting."""
    plain = Loop(setting, "plain", folder, inside)
    loops = {kind: Loop(setting, kind, folder / kind, inside) for kind in KINDS}
    for loop in (plain, *loops.values()):
        loop.run(10)
    shares: dict[str, list[float]] = {kind: [] for kind in KINDS}
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps = []
    for index in progress.track(range(n_rounds), description=str(setting)):
        for kind, n_steps in list(KINDS.items())[:: 1 if index % 2 else -1]:
            bare, _ = plain.run(n_steps)
            seconds, within = loops[kind].run(n_steps)
            steps.append(bare / n_steps)
            shares[kind].append(within / (seconds - within))
            ratios[kind].append(seconds / bare - 1)
    medians = {kind: statistics.median(values) for kind, values in shares.items()}
    rows = [
        (
            WORDS[kind],
            spread(shares[kind]),
            spread(ratios[kind]),
            f"{medians[kind] / medians['control']:.2f}",
            f"{medians['naive'] / medians[kind]:.1f}",
        )
        for kind in KINDS
    ]
    title = f"{setting}; plain step {statistics.median(steps):.3f} CPU s; {n_rounds} rounds, median (quartiles):"
    show(title, ("", "inside callbacks", "whole loop", "times the control", "naive is so many times dearer"), rows)
    for loop in loops.values():
        loop.close()
    sys.stdout.write("\n" + on_disk(folder / "every=1") + "\n" + memory(SETTINGS.index(setting)) + "\n\n")
    sys.stdout.flush()


def spread(values: list[float]) -> str:
    """Return median and quartiles in per cent."""
    low, middle, high = (100 * value for value in statistics.quantiles(values, n=4))
    return f"{middle:.2f} % ({low:.2f} to {high:.2f})"


def on_disk(folder: Path) -> str:
    """Say how large a closed recording is and how long it takes to read."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    start = time.perf_counter()
    recording = Recording.load(folder)
    opened = time.perf_counter() - start
    n_steps = len(recording.table("steps"))
    n_rows = len(recording.table("activations")) + len(recording.table("parameters"))
    read = time.perf_counter() - start
    return (
        f"On disk, closed: {size / n_steps / 1000:.1f} kB a sampled step ({n_rows / n_steps:.0f} rows of activations and "
        f"parameters, manifest included); opened in {1000 * opened:.0f} ms, {n_steps} steps read whole in {1000 * read:.0f} ms."
    )


def memory(number: int) -> str:
    """Say how much more memory a process takes at most under a probe; each measured in a process of its own."""
    peaks = {}
    for kind in ("plain", "every=1"):
        command = [sys.executable, __file__, "peak", str(number), kind]
        peaks[kind] = statistics.median(
            int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(2)
        )
    plain, probed = (value / 1024 for value in peaks.values())
    return (
        f"Peak resident memory: {plain:.0f} MiB plain, {probed:.0f} MiB probed ({100 * (probed / plain - 1):+.1f} %)."
    )


def peak(number: int, kind: str) -> None:
    """Print the peak resident memory of a run of forty steps, in KiB; what discovery takes at the first forward included."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(SETTINGS[number], kind, Path(folder), Inside())
        loop.run(40 // (1 + 2 * number))
        loop.close()
    # Not getrusage's: a child begins with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    sys.stdout.write(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        peak(int(sys.argv[2]), sys.argv[3])
    else:
        main(*map(int, sys.argv[1:2]))
