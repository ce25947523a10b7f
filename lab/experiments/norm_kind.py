"""LayerNorm or RMSNorm? What only the one removes, how both train, and the time that they take on this machine."""

from __future__ import annotations

import time
from dataclasses import replace

import pandas as pd
import torch
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import gap, small, trained
from rheoscope.lab.experiment import Claim, Experiment, Result, Setting, at_most, curve, steps_of, within
from rheoscope.lab.intervals import over_seeds
from rheoscope.lab.learning_rates import at_best, loss_curves, rows_at_best
from rheoscope.lab.measured import at_init
from rheoscope.lab.norms import norm
from rheoscope.lab.threads import one_thread
from rheoscope.probes.recording import Recording
from torch import nn

KINDS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
AT_INIT = Architecture(2, 128, 4, vocabulary=1000, context=32, positions="none")
ROWS, WIDTH, N_TIMED = 2048, 256, 9
ZHANG = "Zhang and Sennrich 2019 (arXiv:1910.07467), RMSNorm"


def carry_out(setting: Setting) -> Result:
    """Compare the norms by hand with torch's, time them, train with both, and look at the mean that RMSNorm leaves."""
    seeds = setting.seeds_at_init
    with steps_of(setting, len(seeds)) as begin, one_thread():
        errors, times = [], []
        fresh = []
        for seed in seeds:
            begin(f"norms alone, seed {seed}")
            errors.append(max(error_by_hand(kind, seed) for kind in KINDS.values()))
            seconds = {
                label: _seconds(norm(Architecture(width=WIDTH, norm_kind=kind))) for label, kind in KINDS.items()
            }
            times.append(seconds["RMSNorm"] / seconds["LayerNorm"])
            # State 0 is the same whichever norm follows.
            fresh.append(float(_mean_shares(at_init(AT_INIT, seed, batch_size=16)).iloc[0]))
    frame = trained({label: small(setting, norm_kind=kind) for label, kind in KINDS.items()}, setting, every=20)
    best = at_best(frame)
    last = {
        label: [_mean_shares(Recording.load(path)) for path in rows_at_best(frame, label)["recording"]]
        for label in KINDS
    }
    best["mean's share, trained"] = [str(over_seeds(each.mean() for each in last[label])) for label in KINDS]
    width = AT_INIT.width
    claims = (
        Claim(
            "largest difference of the norms by hand from torch's, outputs and gradients (float64)",
            over_seeds(errors),
            "0",
            "the formulas",
            at_most(1e-12),
        ),
        gap(frame, "RMSNorm", "LayerNorm", "about 0: comparable quality", ZHANG, (-0.1, 0.1)),
        Claim(
            f"share of state 0's energy in tokens' means at init, {width} wide",
            over_seeds(fresh),
            f"1 / width = {1 / width:.4f}",
            "a random direction's square along one of the axes",
            within(1 / width, 0.25),
        ),
        Claim(
            f"the same of all states after training, {frame['width'].iloc[0]} wide, RMSNorm, which keeps it",
            over_seeds(each.mean() for each in last["RMSNorm"]),
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
        curve(
            "share of the energy in tokens' means after training against state",
            label,
            [(depth, over_seeds(row)) for depth, row in enumerate(zip(*each, strict=True))],
        )
        for label, each in last.items()
    ]
    notes = (
        f"The time is that of torch {torch.__version__}'s own modules on this machine, {ROWS} x {WIDTH}, one thread: it depends "
        "on the kernels that a backend has, and no sign is promised.",
        "Behind blocks the share differs more from seed to seed than between tokens: what is written to all is one direction.",
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


def _mean_shares(recording: Recording) -> pd.Series:
    """Return the share of every state's energy that is in the tokens' own means, at the last sampled step, by depth."""
    rows = Tables(recording).activations
    rows = rows[(rows["site"] == "state") & (rows["direction"] == "forward") & (rows["step"] == rows["step"].max())]
    found: pd.Series = rows.dropna(subset=["mean_share"]).groupby("depth")["mean_share"].mean()
    return found


EXPERIMENT = Experiment(
    "norm-kind",
    "LayerNorm or RMSNorm: is quality the same, what does only LayerNorm remove, and which is faster here?",
    "Zhang and Sennrich 2019",
    (4.0, 0.6),
    carry_out,
)
