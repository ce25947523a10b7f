"""LayerNorm or RMSNorm? What only the one removes, how both train, and the time that they take on this machine."""

from __future__ import annotations

import time
from dataclasses import replace

import pandas as pd
import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.choices import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, steps_of, within
from rheoscope.lab.intervals import Interval, over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best
from rheoscope.lab.norms import norm
from rheoscope.lab.threads import one_thread
from rheoscope.probes.recording import Recording
from torch import nn

KINDS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
ROWS, WIDTH, N_TIMED = 2048, 256, 9
ZHANG = "Zhang and Sennrich 2019 (arXiv:1910.07467), RMSNorm"


def carry_out(setting: Setting) -> Result:
    """Compare the norms by hand with torch's, time them, train with both, and look at the mean that RMSNorm leaves."""
    seeds = setting.seeds_at_init
    with steps_of(setting, len(seeds)) as begin, one_thread():
        errors, times = [], []
        for seed in seeds:
            begin(f"norms alone, seed {seed}")
            errors.append(max(error_by_hand(kind, seed) for kind in KINDS.values()))
            seconds = {
                label: _seconds(norm(Architecture(width=WIDTH, norm_kind=kind))) for label, kind in KINDS.items()
            }
            times.append(seconds["RMSNorm"] / seconds["LayerNorm"])
    frame = trained({label: small(setting, norm_kind=kind) for label, kind in KINDS.items()}, setting, every=20)
    best = at_best(frame)
    means = {label: _mean_shares(frame, label) for label in KINDS}
    width = small(setting).width
    before = [each[0] for each in means.values()]
    best["mean's share of the stream at init"] = [str(each[0]) for each in means.values()]
    best["and after training"] = [str(each[1]) for each in means.values()]
    claims = (
        Claim(
            "largest difference of the norms by hand from torch's, outputs and gradients (float64)",
            over_seeds(errors),
            "0",
            "the formulas",
            at_most(1e-12),
        ),
        gap(frame, "RMSNorm", "LayerNorm", "about 0: comparable quality", ZHANG, (-0.1, 0.1)),
        *(
            Claim(
                f"share of the stream's energy in tokens' means at init, {label}",
                each,
                f"1 / width = {1 / width:.4f}",
                "a random direction's square along one of the axes",
                within(1 / width, 0.25),
            )
            for label, each in zip(KINDS, before, strict=True)
        ),
        Claim(
            "the same after training, RMSNorm, which keeps it",
            means["RMSNorm"][1],
            "small: removing the mean is dispensable",
            f"{ZHANG}, section 4",
            at_most(0.1),
        ),
        Claim(
            "CPU time of RMSNorm over LayerNorm, forward and backward",
            over_seeds(times),
            "whole models run in .36 to .93 of the time, on the paper's GPUs",
            f"{ZHANG}, abstract",
            None,
        ),
    )
    lines = [
        curve("share of the energy in tokens' means after training against state", label, each[2])
        for label, each in means.items()
    ]
    notes = (
        f"The time is that of torch {torch.__version__}'s own modules on this machine, {ROWS} x {WIDTH}, one thread: it depends "
        "on the kernels that a backend has, and no sign is promised.",
    )
    return Result(claims, best, pd.concat([*lines, loss_curves(frame)], ignore_index=True), notes=notes)


def error_by_hand(kind: str, seed: int) -> float:
    """Return the largest difference of outputs and gradients between a norm of torch's and the same by hand, in float64."""
    design = Architecture(width=WIDTH, norm_kind=kind)
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(64, WIDTH, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for one in (design, replace(design, norm_kind=f"{kind}_by_hand")):
        module, read = norm(one).double(), x.clone().requires_grad_()
        y = module(read)
        y.backward(g)
        found.append([y.detach(), read.grad, *(p.grad for p in module.parameters())])
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True) if a is not None and b is not None)


def _seconds(module: nn.Module) -> float:
    """Return the least CPU time of a forward and backward over several."""
    x, g = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(ROWS, WIDTH)
    found = []
    for _ in range(N_TIMED):
        began = time.process_time()
        module(x).backward(g)
        found.append(time.process_time() - began)
    return min(found)


def _mean_shares(frame: pd.DataFrame, label: str) -> tuple[Interval, Interval, list[tuple[float, Interval]]]:
    """Return the mean's share of the states' energy, first step and last, on the mean over states; and by state at the last."""
    first, last, by_depth = [], [], []
    for path in rows_at_best(frame, label)["recording"]:
        rows = Recording.load(path).table("activations", columns=["step", "site", "direction", "depth", "mean_share"])
        rows = rows[(rows["site"] == "state") & (rows["direction"] == "forward")].dropna(subset=["mean_share"])
        ends = [
            rows[rows["step"] == step].groupby("depth")["mean_share"].mean()
            for step in (rows["step"].min(), rows["step"].max())
        ]
        first.append(float(ends[0].mean()))
        last.append(float(ends[1].mean()))
        by_depth.append(ends[1])
    points = pd.concat(by_depth, axis=1)
    return (
        over_seeds(first),
        over_seeds(last),
        [(float(k), over_seeds(row)) for k, row in zip(points.index, points.to_numpy(), strict=True)],
    )


EXPERIMENT = Experiment(
    "norm-kind",
    "LayerNorm or RMSNorm: is quality the same, what does only LayerNorm remove, and which is faster here?",
    "Zhang and Sennrich 2019",
    (8.0, 1.5),
    carry_out,
)
