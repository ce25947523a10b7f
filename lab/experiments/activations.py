"""ReLU, GELU or SiLU? The dip of the smooth ones, who sits in it, and whether momentum carries units out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves
from rheoscope.lab.measured import kept
from rheoscope.lab.run import TAIL, Run, optimizer_of, train_model
from rheoscope.lab.tasks import HELD_OUT, task
from rheoscope.lab.threads import one_thread
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor
from torch.nn import functional

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "silu": functional.silu}
NAMES = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
SHAZEER = "Shazeer 2020 (arXiv:2002.05202), table 1: log-perplexity 1.997 (ReLU), 1.983 (GELU), 1.994 (Swish)"
GELU = "Hendrycks and Gimpel 2016 (arXiv:1606.08415): x Phi(x)"
SILU = "Ramachandran et al. 2017 (arXiv:1710.05941): x sigmoid(x)"
LR = 0.5  # of SGD without momentum; with momentum m it is times 1 - m, for steps of the same size in the long run
MOMENTA = (0.0, 0.9)


def carry_out(setting: Setting) -> Result:
    """Find the dips, count pre-activations beyond them before and after training, and train all three."""
    bottoms = {name: bottom(function) for name, function in FUNCTIONS.items()}
    n_steps = 200 if setting.is_quick else 500
    left: dict[tuple[str, float], list[dict[str, float]]] = {}
    fresh = replace(small(setting), activation="gelu", init="lecun")
    with steps_of(setting, len(FUNCTIONS) * len(MOMENTA) * len(setting.seeds)) as begin, one_thread():
        at_init = [share_beyond(fresh, seed, bottoms["gelu"][0]) for seed in setting.seeds_at_init]
        for name in FUNCTIONS:
            for momentum in MOMENTA:
                left[name, momentum] = []
                for seed in setting.seeds:
                    begin(f"{NAMES[name]}, SGD with momentum {momentum:g}, seed {seed}")
                    design = small(setting, activation=name, init="lecun")
                    rate = LR * (1 - momentum)
                    run = Run(design, rate, seed, n_steps, optimizer="sgd", momentum=momentum)
                    left[name, momentum].append(leaving(run, bottoms[name][0]))
    frame = trained({NAMES[name]: small(setting, activation=name) for name in NAMES}, setting)
    variants = [at_best(frame)]
    for (name, momentum), rows in left.items():
        row = {"label": f"{NAMES[name]}, SGD, momentum {momentum:g}", "best_lr": LR * (1 - momentum)}
        variants.append(pd.DataFrame([row | {key: str(over_seeds(r[key] for r in rows)) for key in rows[0]}]))
    claims = (
        Claim("where GELU is least", over_seeds([bottoms["gelu"][0]]), "-.751790", GELU, within(-0.751790, 1e-5)),
        Claim("its value there", over_seeds([bottoms["gelu"][1]]), "-.169971", GELU, within(-0.169971, 1e-5)),
        Claim("where SiLU is least", over_seeds([bottoms["silu"][0]]), "-1.278465", SILU, within(-1.278465, 1e-5)),
        Claim("its value there", over_seeds([bottoms["silu"][1]]), "-.278465", SILU, within(-0.278465, 1e-5)),
        Claim(
            "share of pre-activations at which GELU falls, at init with unit variance",
            over_seeds(at_init),
            "22.61 %: the Gaussian's share below the dip",
            "closed form",
            within(normal_share_below(bottoms["gelu"][0]), 0.05),
        ),
        *(
            Claim(
                f"share of {NAMES[name]}'s pre-activations beyond the dip at init that training carries out of it, with "
                f"momentum {MOMENTA[1]:g} less without",
                over_seeds(
                    b["carried out"] - a["carried out"]
                    for a, b in zip(left[name, MOMENTA[0]], left[name, MOMENTA[1]], strict=True)
                ),
                "said in lectures to be why the dip is harmless; no figure is published",
                "Stanford CS336, lecture 3",
                None,
            )
            for name in FUNCTIONS
        ),
        *(
            Claim(
                f"share of {NAMES[name]}'s pre-activations beyond the dip, trained over fresh, SGD of momentum {momentum:g}",
                over_seeds(row["beyond after"] / row["beyond at init"] for row in left[name, momentum]),
                "below 1 if units leave for good; no figure is published",
                "Stanford CS336, lecture 3",
                None,
            )
            for name in FUNCTIONS
            for momentum in MOMENTA
        ),
        gap(frame, "GELU", "ReLU", "-.014 (held out, 65,536 steps)", SHAZEER),
        gap(frame, "SiLU", "ReLU", "-.003 (held out, 65,536 steps)", SHAZEER),
    )
    lines = [_drawn(name) for name in FUNCTIONS]
    notes = (
        "Momentum and its absence are compared at steps of the same size in the long run: the learning rate is times 1 less the "
        "momentum. A unit is one pre-activation, of one token of a batch that is never trained on. The losses of both stand in "
        "the table: whoever learned less moved less.",
        "Differences between activations of a hundredth of a nat are below the spread over seeds here.",
    )
    return Result(
        claims,
        pd.concat(variants, ignore_index=True),
        pd.concat([*lines, loss_curves(frame)], ignore_index=True),
        notes=notes,
    )


def bottom(function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Return where a function is least between -3 and 0, and its value there, by halving where its slope changes sign."""
    low, high = -3.0, 0.0
    for _ in range(60):
        middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(function(middle), middle)
        place = float(middle.detach())
        low, high = (place, high) if slope < 0 else (low, place)
    return low, float(function(torch.tensor(low, dtype=torch.float64)))


def normal_share_below(x: float) -> float:
    """Return the share of a standard normal below ``x``."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))


def leaving(run: Run, place: float) -> dict[str, float]:
    """Train, and return which share of pre-activations lies beyond the dip at ``place``, before and after, and who left."""
    torch.manual_seed(run.seed)
    model = ReferenceTransformer(run.architecture, seed=run.seed)
    before = _is_beyond(model, run, place)
    losses, _ = train_model(run, model, optimizer_of(run, model))
    after = _is_beyond(model, run, place)
    stays = float((before & after).sum() / before.sum())
    return {
        "beyond at init": float(before.float().mean()),
        "beyond after": float(after.float().mean()),
        "carried out": 1 - stays,
        "loss": sum(losses[-TAIL:]) / TAIL,
    }


def share_beyond(design: Architecture, seed: int, place: float) -> float:
    """Return the share of a fresh model's pre-activations that lie beyond the dip at ``place``."""
    return float(_is_beyond(ReferenceTransformer(design, seed=seed), Run(design, 1.0, seed), place).float().mean())


def _is_beyond(model: ReferenceTransformer, run: Run, place: float) -> Tensor:
    """Return which pre-activations lie beyond the dip on a batch that is never trained on; the model is left as it was."""
    design: Architecture = run.architecture
    copy = ReferenceTransformer(design, seed=run.seed)
    copy.load_state_dict(model.state_dict())
    projections = kept(copy, "mlp.up")
    with torch.no_grad():
        copy(next(task(run.task)(design.vocabulary, run.batch, design.context, HELD_OUT))[:, :-1])
    return torch.stack([each.given for each in projections]) < place


def _drawn(name: str) -> pd.DataFrame:
    points = torch.linspace(-5, 3, 81, dtype=torch.float64)
    values = FUNCTIONS[name](points)
    return curve(
        "activation against pre-activation",
        NAMES[name],
        [(float(x), over_seeds([float(y)])) for x, y in zip(points, values, strict=True)],
    )


EXPERIMENT = Experiment(
    "activations",
    "ReLU, GELU or SiLU: how many units sit where the smooth ones fall, do they leave, and does quality differ?",
    "Hendrycks and Gimpel 2016; Shazeer 2020",
    (7.0, 1.0),
    carry_out,
)
