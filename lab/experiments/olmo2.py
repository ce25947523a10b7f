"""Do a norm behind the branch and QK-norm only work together? Groeneveld, OLMo 2, 2025."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import torch
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_least, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, sensitivities, swept
from rheoscope.lab.measured import at_init
from rheoscope.lab.run import Run
from rheoscope.lab.tasks import task
from rheoscope.lab.transformer import ReferenceTransformer

BASE = Architecture(
    12,
    256,
    4,
    vocabulary=1000,
    context=32,
    norm_kind="rmsnorm",
    biases=False,
    activation="relu",
    init="xavier",
    positions="none",
    norm_placement="reordered",
)
VARIANTS = {"reordered": BASE, "reordered, QK-norm": replace(BASE, qk_norm=True)}
TRAINED = Architecture(4, 64, 4, vocabulary=64, context=48, norm_kind="rmsnorm", biases=False, positions="rotary")
DESIGNS = {
    "pre-norm": TRAINED,
    "pre-norm, QK-norm": replace(TRAINED, qk_norm=True),
    "reordered": replace(TRAINED, norm_placement="reordered"),
    "reordered, QK-norm": replace(TRAINED, norm_placement="reordered", qk_norm=True),
}
RATES, RATES_QUICK = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (3e-3, 3e-2)
SOURCE = "OLMo 2 (arXiv:2501.00656), section 3.3.2: neither change yields good results alone, together they do"


def carry_out(setting: Setting) -> Result:
    """Measure logits and gradients at init with and without QK-norm, then train four designs at several learning rates."""
    ratio: dict[str, list[float]] = {label: [] for label in VARIANTS}
    spread: dict[str, list[list[float]]] = {label: [] for label in VARIANTS}
    with steps_of(setting, len(VARIANTS) * len(setting.seeds_at_init)) as begin:
        for label, design in VARIANTS.items():
            for seed in setting.seeds_at_init:
                begin(f"{label}, seed {seed}")
                states = Tables(at_init(design, seed)).gradient_profile().sort_values("depth")["rms"]
                ratio[label].append(float(states.iloc[0] / states.iloc[-1]))
                spread[label].append(_logit_sizes(design, seed))
    runs = {label: Run(design, lr=1e-3, n_steps=250, warm_up=20) for label, design in DESIGNS.items()}
    frame = swept(runs, RATES_QUICK if setting.is_quick else RATES, setting)
    best = at_best(frame)
    last = {label: over_seeds(each[-1] for each in values) for label, values in spread.items()}
    plain, normed = VARIANTS
    without, with_it = (sensitivities(frame, label) for label in ("reordered", "reordered, QK-norm"))
    claims = (
        Claim(
            "RMS of the last block's attention logits at init, without QK-norm",
            last[plain],
            "d sigma_q sigma_k times the stream's mean square: 22.8",
            "closed form of a branch that reads an unnormed stream",
            within(22.8, 0.25),
        ),
        Claim("the same with QK-norm", last[normed], "1", "closed form", within(1.0, 0.1)),
        Claim(
            "gradient RMS of the first state over the last's, without QK-norm",
            over_seeds(ratio[plain]),
            "36.7 (even attention would give 4.5)",
            SOURCE,
            at_least(10.0),
        ),
        Claim(
            "the same with QK-norm",
            over_seeds(ratio[normed]),
            "5.7 (even attention would give 4.5)",
            SOURCE,
            within(5.7, 0.25),
        ),
        Claim(
            "sensitivity to the learning rate, reordered without QK-norm less with it, in nats",
            over_seeds(a - b for a, b in zip(without, with_it, strict=True)),
            "above 0",
            SOURCE,
            None if setting.is_quick else at_least(0.0),
        ),
    )
    lines = [
        curve(
            "RMS of attention logits at init against block",
            label,
            [(block, over_seeds(each)) for block, each in enumerate(zip(*values, strict=True))],
        )
        for label, values in spread.items()
    ]
    return Result(claims, best, pd.concat([*lines, loss_curves(frame)], ignore_index=True))


def _logit_sizes(design: Architecture, seed: int) -> list[float]:
    """Return the RMS of the attention logits over all pairs of tokens, block by block."""
    model = ReferenceTransformer(design, seed=seed)
    tokens = next(task("uniform")(design.vocabulary, 4, design.context - 1, seed))
    x, found = model.token_embedding(tokens), []
    with torch.no_grad():
        for block in model.blocks:
            q, k = (
                block.get_submodule(f"attention.{name}_norm")(
                    block.get_submodule(f"attention.{name}")(x).unflatten(-1, (design.n_heads, -1)).transpose(1, 2)
                )
                for name in ("query", "key")
            )
            found.append(float((q @ k.mT / q.shape[-1] ** 0.5).square().mean().sqrt()))
            x = block(x)
    return found


EXPERIMENT = Experiment(
    "olmo2",
    "Do a norm behind the branch and QK-norm only work together?",
    "OLMo 2, 2025",
    (20.0, 3.0),
    carry_out,
)
