"""Sample ten thousand steps in full and watch the memory of the process: python benchmarks/soak.py [steps]."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from measuring import machine
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from rheoscope.probes.step_gauge import PAGE, STATM
from rich.console import Console
from rich.progress import Progress


def main(n_steps: int = 10_000) -> None:
    """Train, and print resident memory after 100 steps and at the end, and what the recording weighs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = ReferenceTransformer(Architecture(n_blocks=1, width=32, context=16)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.randint(32, (2, 16))
    resident: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name, Progress(console=Console(stderr=True)) as progress:
        folder = Path(name) / "run"
        with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
            for step in progress.track(range(n_steps), description="soak"):
                loss = model(tokens, tokens).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                probe.step(loss)
                if step + 1 in (100, n_steps // 2, n_steps):
                    resident[step + 1] = int(STATM.read_text().split()[1]) * PAGE / 2**20
        start = time.perf_counter()
        recording = Recording.load(folder)
        one = len(recording.table("activations", steps=n_steps - 1))
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in folder.iterdir())
    told = ", ".join(f"{megabytes:.0f} MiB after step {step}" for step, megabytes in resident.items())
    sys.stdout.write(
        f"{n_steps} steps sampled in full ({machine()}): resident memory {told}. The recording takes {size / 2**20:.0f} MiB; "
        f"opening it and reading the {one} rows of the last step takes {seconds:.2f} s.\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
