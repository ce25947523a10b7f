"""Make the sound recordings that the mutations start from: one closed, one as a killed run leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from oracles import NanoGPT
from rheoscope.probes.recorder import attach

N_STEPS = 4


def sound(folder: Path) -> tuple[Path, Path]:
    """Write both recordings under ``folder`` and return where they are: closed (Parquet), and open (streams)."""
    torch.manual_seed(0)
    model = NanoGPT().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 61, (2, 8))
    closed, cut = folder / "closed", folder / "open"
    with attach(model, optimizer, every=1, folder=closed) as probe:
        for _ in range(N_STEPS):
            loss = model(ids).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
        _ = probe.recording  # flushes
        shutil.copytree(closed, cut)
    return closed, cut
