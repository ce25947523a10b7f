"""Measure fresh transformers beside the closed forms of their weights: python benchmarks/theory.py [page]."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rheoscope.diagnostics.against_theory import side_by_side
from rheoscope.diagnostics.expected import Prediction, theory_of_recording
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine

SEEDS, LENGTH, BATCH, VOCABULARY = tuple(range(8)), 32, 4, 1000
BASE = Architecture(12, 256, 4, vocabulary=VOCABULARY, context=LENGTH, norm_kind="rmsnorm", biases=False)
DESIGNS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm_placement": "post"},
    "double": {"norm_placement": "double"},
    "reordered": {"norm_placement": "reordered"},
    "reordered, QK-norm": {"norm_placement": "reordered", "qk_norm": True},
    "parallel": {"is_parallel": True},
}
MORE: dict[str, dict[str, Any]] = {
    "pre, Xavier": {"init": "xavier"},
    "post, Xavier": {"init": "xavier", "norm_placement": "post"},
    "double, Xavier": {"init": "xavier", "norm_placement": "double"},
    "reordered, Xavier": {"init": "xavier", "norm_placement": "reordered"},
    "reordered, QK-norm, Xavier": {"init": "xavier", "norm_placement": "reordered", "qk_norm": True},
    "DeepNorm, Xavier": {"init": "xavier", "norm_placement": "post", "depth_scaling": "deepnorm"},
    "GPT-2 scaling, Xavier": {"init": "xavier", "depth_scaling": "gpt2"},
    "pre, LayerNorm, biases": {"norm_kind": "layernorm", "biases": True},
    "pre, 64 wide": {"width": 64},
    "double, 64 wide": {"width": 64, "norm_placement": "double"},
    "pre, 16 wide": {"width": 16},
}
HEAD = f"""# The closed forms beside measured transformers

Written by `python benchmarks/theory.py docs/theory.md`. A reference transformer, 12 blocks, 256 wide, 4 heads,
{LENGTH} tokens in {BATCH} sequences, {VOCABULARY:,} tokens, causal, RMSNorm, every matrix N(0, .02^2) unless said, is
examined at init; the closed form is fed from that recording alone: anatomy, RMS of every weight matrix, size and likeness of
state 0, head. States and gradients
are means over {len(SEEDS)} seeds (roots of mean squares). "Worst" is the largest distance over all states, gradients in absolute
size, from the loss. "One seed" is the worst of a single model, as a user's recording is judged, with the band that it is given.

"""


def compared(choices: dict[str, Any]) -> list[str]:
    """Return the cells of one row: measured against predicted."""
    frames, found = [], []
    for seed in SEEDS:
        batch = torch.randint(VOCABULARY, (2, BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
        tables = Tables(examine(ReferenceTransformer(replace(BASE, **choices), seed=seed), tuple(batch)))
        prediction = theory_of_recording(tables)
        if not isinstance(prediction, Prediction):
            return [f"refused: {prediction.reason}", *[""] * 5]
        found.append(prediction)
        frames.append([side_by_side(tables, prediction, column) for column in ("rms", "gradient")])
    cells, alone = [], []
    for index, column in enumerate(("rms", "gradient")):
        measured = np.sqrt(np.mean([f[index]["observed"].to_numpy() ** 2 for f in frames], axis=0))
        predicted = np.mean([f[index]["expected"].to_numpy() for f in frames], axis=0)
        worst = float(np.abs(measured / predicted - 1).max())
        ratio = [values[0] / values[-1] if index else values[-1] for values in (measured, predicted)]
        cells += [f"{ratio[0]:.3g} / {ratio[1]:.3g}", f"{worst:.1%}"]
        single = max(math.exp(np.abs(np.log(f[index]["ratio"])).max()) - 1 for f in frames)
        band = max((p.rms_band if column == "rms" else p.gradient_band) - 1 for p in found)
        alone.append(f"{single:.0%} of {band:.0%}")
    return [*cells, *alone]


def main(page: str = "") -> None:
    """Print the page, or write it."""
    torch.set_num_threads(1)
    text = HEAD
    text += "| design | last state's RMS, measured / predicted | worst | gradient, first over last state | worst "
    text += "| states, one seed | gradients, one seed |\n|---|---|---|---|---|---|---|\n"
    rows = {
        f"{design}, {activation}": choices | {"activation": activation}
        for design, choices in DESIGNS.items()
        for activation in ("relu", "gelu", "swiglu")
    }
    for name, choices in (rows | MORE).items():
        text += f"| {name} | {' | '.join(compared(choices))} |\n"
    text += (
        "\nRefused are designs whose attention is far from uniform at init, as reordered norms make it without a norm on queries "
        "and keys: their logits grow with the stream.\n"
    )
    if page:
        Path(page).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main(*sys.argv[1:2])
