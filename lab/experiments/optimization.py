"""How do curvature, momentum and the learning rate meet? The edge of stability on a tiny transformer, trained on all of its data."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, steps_of
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.sharpness import sharpness
from rheoscope.lab.tasks import task
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor

DESIGN = Architecture(
    2,
    32,
    2,
    vocabulary=16,
    context=16,
    norm_kind="rmsnorm",
    biases=False,
    positions="learned",
    init="lecun",
    embedding_std=1.0,
)
# Learning rate and momentum; the edge lies at 2 (1 + momentum) over the learning rate.
SETTINGS = {"gradient descent": (0.2, 0.0), "momentum .9": (0.02, 0.9)}
N_STEPS, N_STEPS_QUICK, EVERY = 600, 300, 20
PAPER = "Cohen et al. 2021 (arXiv:2103.00065)"
Trace = list[tuple[int, float, float, float]]  # step, loss, sharpness over the edge, cosine of successive updates


def carry_out(setting: Setting) -> Result:
    """Train on one batch, again and again, and follow the largest eigenvalue of the Hessian and the updates' directions."""
    n_steps = N_STEPS_QUICK if setting.is_quick else N_STEPS
    traces: dict[str, list[Trace]] = {label: [] for label in SETTINGS}
    with steps_of(setting, len(SETTINGS) * len(setting.seeds)) as begin, one_thread():
        for label, (lr, momentum) in SETTINGS.items():
            for seed in setting.seeds:
                begin(f"{label}, seed {seed}")
                traces[label].append(_trained(lr, momentum, seed, n_steps))
    end, start = slice(-max(1, len(traces["gradient descent"][0]) // 3), None), slice(0, 1)
    ratio = {label: over_seeds(_mean(trace[end], 2) for trace in found) for label, found in traces.items()}
    cosine = {label: over_seeds(_mean(trace[end], 3) for trace in found) for label, found in traces.items()}
    plain, heavy = SETTINGS
    claims = (
        Claim(
            "sharpness over 2 / lr in the last third, gradient descent",
            ratio[plain],
            "about 1, or just above: sharpness rises until there and hovers",
            f"{PAPER}, section 3",
            (0.8, 1.5),
        ),
        Claim(
            "sharpness over 2 (1 + .9) / lr in the last third, momentum .9",
            ratio[heavy],
            "about 1, or just above",
            f"{PAPER}, appendix B: Polyak momentum's edge",
            (0.6, 1.5),
        ),
        Claim(
            "cosine of successive updates in the last third, gradient descent",
            cosine[plain],
            "negative: along the sharpest direction the iterates oscillate",
            f"{PAPER}, section 3",
            at_most(0.0),
        ),
    )
    variants = pd.DataFrame(
        [
            {
                "label": label,
                "learning rate": lr,
                "edge": 2 * (1 + momentum) / lr,
                "sharpness over the edge at first": str(over_seeds(_mean(trace[start], 2) for trace in traces[label])),
                "and in the last third": str(ratio[label]),
                "cosine of successive updates": str(cosine[label]),
                "last loss": str(over_seeds(trace[-1][1] for trace in traces[label])),
            }
            for label, (lr, momentum) in SETTINGS.items()
        ]
    )
    lines = [
        curve(f"{what} against step", label, _points(found, column))
        for column, what in ((2, "sharpness over the edge"), (3, "cosine of successive updates"), (1, "loss"))
        for label, found in traces.items()
    ]
    notes = (
        "Shown for training on all of the data at every step; the noise of small batches holds sharpness below the edge. For Adam the "
        "preconditioned sharpness meets 38 / lr (Wortsman et al. 2023, citing Cohen et al. 2022), which is not measured here.",
    )
    return Result(claims, variants, pd.concat(lines, ignore_index=True), notes=notes)


def _trained(lr: float, momentum: float, seed: int, n_steps: int) -> Trace:
    model = ReferenceTransformer(DESIGN, seed=seed)
    batch = next(task("recall")(DESIGN.vocabulary, 32, DESIGN.context, seed))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    loss: Callable[[], Tensor] = lambda: model(batch[:, :-1], batch[:, 1:]).loss
    generator = torch.Generator().manual_seed(seed)
    vector = [torch.randn(p.shape, generator=generator) for p in parameters]
    found: Trace = []
    before: Tensor | None = None
    for step in range(n_steps):
        old = torch.cat([p.detach().flatten() for p in parameters])
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        update = torch.cat([p.detach().flatten() for p in parameters]) - old
        if step % EVERY == EVERY - 1 and before is not None:
            cosine = float(torch.cosine_similarity(update, before, dim=0))
            eigenvalue, vector = sharpness(loss, parameters, vector)
            found.append((step + 1, float(value.detach()), eigenvalue * lr / (2 * (1 + momentum)), cosine))
        before = update
    return found


def _mean(trace: Trace, column: int) -> float:
    return sum(row[column] for row in trace) / len(trace)


def _points(traces: list[Trace], column: int) -> list[tuple[float, Interval]]:
    return [(rows[0][0], over_seeds(row[column] for row in rows)) for rows in zip(*traces, strict=True)]


EXPERIMENT = Experiment(
    "optimization",
    "How do curvature, momentum and the learning rate meet in training?",
    "Cohen et al. 2021",
    (4.0, 1.5),
    carry_out,
)
