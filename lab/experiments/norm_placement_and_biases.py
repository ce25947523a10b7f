"""How do norm placement and biases affect propagation? Four reference transformers, two inits, at init and in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.corpus import batches
from rheoscope.lab.threads import one_thread
from rheoscope.lab.training import train
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor

from .first_run import reference_loss

N_STEPS, BATCH, LR = 60, 4, 1e-3
DEPTHS = (3, 6, 12, 24)
INITS = {"xavier": "Xavier init", "normal": "N(0, .02) init"}
OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Variant:
    """One cell of the experiment."""

    label: str
    group: str
    name: str
    architecture: Architecture


def variants(base: Architecture) -> list[Variant]:
    """Return {pre, post} x {biases, none} for both inits."""
    found = []
    for init, group in INITS.items():
        for placement in ("pre", "post"):
            for biases in (True, False):
                name = f"{placement}-norm, {'biases' if biases else 'no biases'}"
                architecture = replace(base, norm_placement=placement, biases=biases, init=init)
                found.append(Variant(f"{name}, {group}", group, name, architecture))
    return found


@one_thread()
def norm_placement_and_biases(
    folder: Path,
    *,
    base: Architecture | None = None,
    n_steps: int = N_STEPS,
    depths: tuple[int, ...] = DEPTHS,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Run the experiment and return its comparison.

    Each variant is examined at init on uniformly random tokens (what the closed forms assume), trained ``n_steps``
    steps on real text at one learning rate, and examined at other depths. One seed.

    Args:
        folder: where the recordings of the training runs are written, one folder each.
        base: what the variants share.
        n_steps: optimizer steps of each.
        depths: numbers of blocks at which transmission and amplification are measured, besides the base's own.
        on_progress: called with (parts done, parts in all, what is next).
    """
    base = base or Architecture()
    depths = tuple(sorted({*depths, base.n_blocks}))
    cells = variants(base)
    n_parts = len(cells) * (1 + len(depths))
    tokens = random_tokens(base)
    at_init: dict[str, Recording] = {}
    runs: dict[str, Recording] = {}
    rows: list[dict[str, object]] = []
    for index, cell in enumerate(cells):
        done = index * (1 + len(depths))
        for part, n_blocks in enumerate(depths):
            report(on_progress, done + part, n_parts, f"{cell.label}: {n_blocks} blocks at init")
            recording = _examined(cell, n_blocks, tokens)
            rows.append(_depth_row(cell, n_blocks, recording))
            if n_blocks == base.n_blocks:
                at_init[cell.label] = recording
        report(on_progress, done + len(depths), n_parts, f"{cell.label}: {n_steps} training steps")
        runs[cell.label] = _trained(cell, folder / f"variant-{index}", n_steps)
    report(on_progress, n_parts, n_parts, "done")
    title = f"Norm placement and biases: {base.n_blocks} blocks, {base.width} wide, one seed"
    return Comparison(runs, at_init, pd.DataFrame(rows), title)


def random_tokens(architecture: Architecture, batch_size: int = 4) -> Tensor:
    """Return a batch of uniformly random tokens, shape (batch_size, context)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(architecture.vocabulary, (batch_size, architecture.context), generator=generator)


def report(on_progress: OnProgress | None, done: int, total: int, text: str) -> None:
    """Tell how far the experiment is, where somebody listens."""
    if on_progress:
        on_progress(done, total, text)


def _examined(cell: Variant, n_blocks: int, tokens: Tensor) -> Recording:
    architecture = replace(cell.architecture, n_blocks=n_blocks)
    recording = examine(ReferenceTransformer(architecture, seed=0), tokens, label=f"{cell.label}, at init")
    recording.manifest |= {"group": cell.group, "variant": cell.name}
    return recording


def _trained(cell: Variant, folder: Path, n_steps: int) -> Recording:
    model = ReferenceTransformer(cell.architecture, seed=0)
    stream: Iterator[Tensor] = batches(BATCH, cell.architecture.context, seed=0)
    recording = train(model, stream, reference_loss, n_steps=n_steps, lr=LR, folder=folder, every=6, label=cell.label)
    recording.manifest |= {"group": cell.group, "variant": cell.name}
    return recording


def _depth_row(cell: Variant, n_blocks: int, recording: Recording) -> dict[str, object]:
    tables = Tables(recording)
    transmission = tables.block_transmission()["transmission"]
    return {
        "group": cell.group,
        "label": cell.label,
        "variant": cell.name,
        "n_blocks": n_blocks,
        "transmission": float(transmission.iloc[0]) if len(transmission) else None,
        "amplification": tables.identity("amplification"),
        "relative_amplification": tables.identity("relative_amplification"),
    }
