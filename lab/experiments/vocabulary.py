"""How large a vocabulary? Byte-pair vocabularies trained on the same text, compared in bits per byte."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.byte_pairs import bytes_per_token
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, swept
from rheoscope.lab.run import Run

SIZES, SIZES_QUICK = (256, 512, 1024, 2048, 4096), (256, 1024)
BASE = Architecture(4, 64, 4, context=64, norm_kind="rmsnorm", biases=False, positions="rotary")
RATES, RATES_QUICK = (1e-3, 3e-3, 1e-2), (3e-3,)
LECTURE = "published models: 30,000 to 50,000 for one language, 100,000 to 250,000 for many"


def carry_out(setting: Setting) -> Result:
    """Train a vocabulary of every size and a model on it, and turn its loss into bits per byte of text."""
    sizes = SIZES_QUICK if setting.is_quick else SIZES
    lengths = {}
    with steps_of(setting, len(sizes)) as begin:
        for size in sizes:
            begin(f"a vocabulary of {size}")
            lengths[size] = bytes_per_token(size)
    runs = {
        f"{size}": Run(
            replace(BASE, vocabulary=size), lr=1e-3, n_steps=100 if setting.is_quick else 300, batch=8, task="bpe"
        )
        for size in sizes
    }
    frame = swept(runs, RATES_QUICK if setting.is_quick else RATES, setting)
    best = at_best(frame).set_index("label", drop=False)
    bits = {}
    for size in sizes:
        chosen = frame[(frame["label"] == f"{size}") & (frame["lr"] == best.loc[f"{size}", "best_lr"])]
        bits[size] = over_seeds(chosen["raw_last_loss"] / math.log(2) / lengths[size])
    best["bytes a token"] = [round(lengths[size], 3) for size in sizes]
    best["bits a byte"] = [str(bits[size]) for size in sizes]
    smallest, largest = sizes[0], sizes[-1]
    claims = (
        Claim(
            "bytes a token of the vocabulary of single bytes",
            over_seeds([lengths[smallest]]),
            "1",
            "by definition",
            within(1.0, 1e-9),
        ),
        Claim(
            f"bits a byte with {largest:,} tokens less with {smallest:,}, at equal steps",
            over_seeds([bits[largest].mean - bits[smallest].mean]),
            LECTURE,
            "no published figure at this size",
            None,
        ),
    )
    lines = [
        curve("bits a byte against vocabulary", "measured", [(size, each) for size, each in bits.items()]),
        curve(
            "bytes a token against vocabulary",
            "measured",
            [(size, over_seeds([each])) for size, each in lengths.items()],
        ),
    ]
    notes = (
        "At equal steps a larger vocabulary sees more bytes of text, and its embedding has more parameters: both stand in the table.",
    )
    return Result(claims, best.reset_index(drop=True), pd.concat(lines, ignore_index=True), notes=notes)


EXPERIMENT = Experiment(
    "vocabulary",
    "How does the size of the vocabulary change what a model of text pays per byte?",
    "published vocabularies",
    (10.0, 1.5),
    carry_out,
)
