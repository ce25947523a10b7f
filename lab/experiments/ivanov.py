"""Do norms and element-wise operators take time beyond their share of the arithmetic? Ivanov et al. 2021."""

from __future__ import annotations

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, at_most, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.operator_time import CLASSES, forward_and_backward, of_contractions, seconds_by_class
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import Block

# Of a layer of BERT-large with batches of 8 x 512: forward operations, as the paper counts them.
BATCH, LENGTH, WIDTH, HIDDEN, HEADS = 8, 512, 1024, 4096, 16
PAPER = "Ivanov et al. 2021 (arXiv:2007.00072), table 1"
RUNTIME = (61.0, 25.5, 13.5)  # per cent, BERT-large on a V100
FLOP_A_NORM, FLOP_A_SOFTMAX = (
    7,
    5,
)  # an element, as the paper counts: mean, variance, scale and shift; max, exp, sum, divide


def carry_out(setting: Setting) -> Result:
    """Count the operations of one block, and time them by class on this machine at a smaller size."""
    shares = _flop_shares()
    width = 256 if setting.is_quick else 512
    design = Architecture(1, width, 8, context=128, norm_placement="post", dropout=0.1)
    timed: list[dict[str, float]] = []
    with steps_of(setting, len(setting.seeds_at_init)) as begin, one_thread():
        for seed in setting.seeds_at_init:
            begin(f"one block, {width} wide, run {seed}")
            torch.manual_seed(seed)
            seconds = seconds_by_class(forward_and_backward(Block(design), torch.randn(8, 128, width)))
            timed.append({name: value / sum(seconds.values()) for name, value in seconds.items()})
        block = Block(design)
        counted = of_contractions(forward_and_backward(block, torch.randn(8, 128, width)))
    here = {name: over_seeds(100 * each[name] for each in timed) for name in CLASSES}
    expected = _contractions(8, 128, width, 4 * width)
    claims = (
        Claim(
            "share of operations in tensor contractions, per cent",
            over_seeds([shares[0]]),
            "99.80",
            PAPER,
            (99.7, 99.9),
        ),
        Claim("in normalisation and softmax", over_seeds([shares[1]]), ".17", PAPER, (0.07, 0.27)),
        Claim("in element-wise operators", over_seeds([shares[2]]), ".03", PAPER, (0.0, 0.13)),
        Claim(
            "torch's count of contractions, forward and backward, over the formula's",
            over_seeds([counted / expected]),
            "1",
            "8 B T d^2 + 4 B T^2 d + 4 B T d f forward, twice that backward",
            within(1.0, 0.02),
        ),
        Claim("share of time in tensor contractions, per cent", here[CLASSES[0]], "61.0 (V100)", PAPER, at_most(95.0)),
        Claim(
            "share of time over share of operations, of all but contractions",
            over_seeds((1 - each[CLASSES[0]]) / (1 - shares[0] / 100) for each in timed),
            "195 (39 % of the time in .2 % of the operations)",
            PAPER,
            at_least(50.0),
        ),
    )
    variants = pd.DataFrame(
        {
            "operators": CLASSES,
            "operations, %": [f"{share:.2f}" for share in shares],
            "time here, %": [str(here[name]) for name in CLASSES],
            "time on a V100, % (published)": RUNTIME,
        }
    )
    chart = "per cent of the time against class of operator (1 contraction, 2 statistics, 3 element-wise)"
    lines = [
        curve(chart, "here", [(index + 1, here[name]) for index, name in enumerate(CLASSES)]),
        curve(chart, "published, V100", [(index + 1, over_seeds([value])) for index, value in enumerate(RUNTIME)]),
    ]
    notes = (
        f"Times are of one block {width} wide on one core of this machine; a GPU's memory is relatively slower, and its shares "
        "differ.",
    )
    return Result(claims, variants, pd.concat(lines, ignore_index=True), notes=notes)


def _contractions(batch: int, length: int, width: int, hidden: int) -> float:
    """Return the operations of a block's matrix products, forward and backward."""
    tokens = batch * length
    return 3.0 * (8 * tokens * width**2 + 4 * tokens * length * width + 4 * tokens * width * hidden)


def _flop_shares() -> tuple[float, float, float]:
    """Return the shares of a BERT-large layer's operations by class, in per cent, forward and backward."""
    tokens, logits = BATCH * LENGTH, BATCH * HEADS * LENGTH**2
    contraction = _contractions(BATCH, LENGTH, WIDTH, HIDDEN)
    # Backward, statistics take about twice and element-wise operators about as much as forward.
    statistical = 3.0 * (2 * FLOP_A_NORM * tokens * WIDTH + FLOP_A_SOFTMAX * logits)
    # Biases (four of the width, one of the hidden layer, one behind it), activation, three dropouts, two adds, the scale.
    elementwise = 2.0 * (tokens * (5 * WIDTH + 2 * HIDDEN + 2 * WIDTH + 2 * WIDTH) + 2 * logits)
    total = contraction + statistical + elementwise
    return 100 * contraction / total, 100 * statistical / total, 100 * elementwise / total


EXPERIMENT = Experiment(
    "ivanov",
    "Do norms and element-wise operators take time beyond their share of the arithmetic?",
    "Ivanov et al. 2021",
    (0.5, 0.2),
    carry_out,
)
