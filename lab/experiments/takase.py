"""Do small embeddings make the first gradients large? Takase et al. 2023, "Spike No More"."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.measured import stream

BASE = Architecture(
    12, 256, 4, vocabulary=1000, context=32, norm_kind="rmsnorm", biases=False, activation="relu", positions="none"
)
# Standard deviation of an element of state 0 -> gradient RMS before the first block over that behind the last: closed form.
EXPECTED = {0.02: 25.7, 0.32: 1.89, 1.0: 1.126}
SOURCE = (
    "Takase et al. 2023 (arXiv:2312.16903), section 4: the gradient of a branch is bounded by 1 over the state's size"
)


def carry_out(setting: Setting) -> Result:
    """Measure the ratio of the first gradient to the last for three sizes of the embedding."""
    ratios: dict[float, list[float]] = {}
    with steps_of(setting, len(EXPECTED) * len(setting.seeds_at_init)) as begin:
        for size in EXPECTED:
            ratios[size] = []
            for seed in setting.seeds_at_init:
                begin(f"embeddings of std {size:g}, seed {seed}")
                _, gradients = stream(replace(BASE, embedding_std=size), seed)
                ratios[size].append(gradients[0] / gradients[-1])
    found = {size: over_seeds(values) for size, values in ratios.items()}
    claims = [
        Claim(
            f"gradient RMS of state 0 over that of the last state, embeddings of std {size:g}",
            found[size],
            f"{expected:g} (closed form of this model at init)",
            SOURCE,
            within(expected, 0.1),
        )
        for size, expected in EXPECTED.items()
    ]
    drop = over_seeds(small / scaled for small, scaled in zip(ratios[0.02], ratios[0.32], strict=True))
    claims.append(
        Claim(
            "by how much embeddings times the root of the width lower the ratio",
            drop,
            "by far more than 1",
            SOURCE,
            (10.0, 20.0),
        )
    )
    variants = pd.DataFrame([{"embedding std": size, "ratio": str(each)} for size, each in found.items()])
    points = list(found.items())
    chart = "gradient of state 0 over the last state's against standard deviation of the embeddings"
    return Result(tuple(claims), variants, curve(chart, "measured", points))


EXPERIMENT = Experiment(
    "takase",
    "Do small embeddings make the first gradients large, and does scaling them by the root of the width cure it?",
    "Takase et al. 2023",
    (0.5, 0.5),
    carry_out,
)
