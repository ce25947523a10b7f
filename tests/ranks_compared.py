"""Start ranks as torchrun does, and compare what they recorded with what one process records."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.recording import Recording

HERE = Path(__file__).parent
LONGEST = 90  # seconds until ranks are killed

KEYS: dict[str, list[str]] = {
    "activations": [
        "step",
        "micro_step",
        "stack",
        "block",
        "branch",
        "depth",
        "site",
        "call",
        "direction",
        "module_path",
    ],
    "gradient_paths": ["step", "micro_step", "stack", "depth"],
    "parameters": ["step", "name"],
    "attention": ["step", "micro_step", "stack", "depth", "call", "head"],
    "tokens": ["step", "micro_step", "stack", "depth"],
    "logits": ["step", "micro_step", "stack"],
    "experts": ["step", "micro_step", "stack", "depth", "call", "expert"],
    "groups": ["step", "group"],
    "steps": ["step"],
}
# What differs between machines, or says how many ranks there are.
OWN = {"seconds", "memory_bytes", "n_ranks", "lowest_loss", "highest_loss"}


def started(n_ranks: int, task: str, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Start the ranks as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for rank in range(n_ranks):
        places = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": n_ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        more = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        found.append(
            subprocess.Popen(
                [sys.executable, str(HERE / "ranks_at_work.py"), task, str(folder)],
                env=os.environ | {name: str(value) for name, value in (places | more).items()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        )
    return found


def ended(ranks: list[subprocess.Popen[bytes]]) -> list[tuple[int, str]]:
    """Wait for the ranks, not for ever; return how each ended and what it said."""
    end, found = time.monotonic() + LONGEST, []
    try:
        for rank in ranks:
            said, _ = rank.communicate(timeout=max(1.0, end - time.monotonic()))
            found.append((rank.returncode, said.decode()))
    finally:
        for rank in ranks:
            rank.kill()
    return found


def worked(n_ranks: int, task: str, folder: Path) -> None:
    """Run the ranks; all of them must end well."""
    for code, said in ended(started(n_ranks, task, folder)):
        assert code == 0, said


def differences(
    joint: Recording, single: Recording, tolerance: float, tables: dict[str, list[str]] = KEYS
) -> list[str]:
    """Return every number that differs by more than ``tolerance`` of itself, and every row that only one has."""
    found = []
    for table, keys in tables.items():
        a, b = (each.table(table).set_index(keys).sort_index() for each in (joint, single))
        if not a.index.equals(b.index):
            missing, more = b.index.difference(a.index), a.index.difference(b.index)
            found.append(f"{table}: rows missing {list(missing)[:3]}, too many {list(more)[:3]}, {len(a)} of {len(b)}")
            continue
        if not len(b) and table != "experts":
            found.append(f"{table}: no rows to compare")
        for column in [c for c in b.columns if c not in OWN]:
            x, y = a[column], b[column]
            if pd.api.types.is_numeric_dtype(y) and y.dtype != bool:
                scale = _scale(b, column)
                same = np.isclose(x.astype(float), y.astype(float), rtol=tolerance, atol=0, equal_nan=True)
                same |= (x.astype(float) - y.astype(float)).abs() <= tolerance * scale
            else:
                same = (x == y) | (x.isna() & y.isna())
            if not np.all(same):
                where = np.flatnonzero(~np.asarray(same))
                first = where[0]
                found.append(
                    f"{table}.{column} {len(where)} of {len(b)}: {b.index[first]} {x.iloc[first]} not {y.iloc[first]}"
                )
    return found


def _scale(frame: pd.DataFrame, column: str) -> Any:
    """Return to what a column's rounding is relative: means to the RMS, cosines and shares to 1, others to themselves."""
    if column == "mean":
        return frame["rms"]
    if column == "channel_absmean":
        return frame["absmax"]
    return 1.0 if "cosine" in column or "share" in column or column == "angular_distance" else 0.0
