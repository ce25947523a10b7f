"""Do activations keep their size when the model grows? The coordinate check of muP's users, against width or against depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from torch import nn

from .power_law import power_law
from .short_run import MakeOptimizer, adamw, again, short_run
from .threads import one_thread

Make = Callable[[int], tuple[nn.Module, Batch]]
Axis = Literal["width", "depth"]
N_STEPS = 10
STEADY = 0.15  # exponent within which a size is said to be kept: the square root's is .5, a proportional one's 1
SITES = {"state": "state behind the last block", "write": "write", "hidden": "hidden layer", "logits": "logits"}


@dataclass(frozen=True)
class CoordinateCheck:
    """What a check of sizes found.

    Attributes:
        axis: what was changed, width or depth.
        sizes: one row a size, seed, step and coordinate: ``size``, ``seed``, ``step``, ``coordinate``, ``rms``.
        exponents: one row a step and coordinate: ``exponent`` p of RMS ~ size^p, ``low`` and ``high`` of its 90 % interval, and
            ``verdict``: kept, grows, shrinks or unclear.
    """

    axis: Axis
    sizes: pd.DataFrame
    exponents: pd.DataFrame

    @property
    def is_kept(self) -> bool:
        """Whether no coordinate grows or shrinks with the size at the last step."""
        last = self.exponents[self.exponents["step"] == self.exponents["step"].max()]
        return not last["verdict"].isin(["grows", "shrinks"]).any()


def coordinate_check(
    make: Make,
    sizes: Sequence[int],
    *,
    axis: Axis = "width",
    n_steps: int = N_STEPS,
    lr: float = 1e-3,
    loss_fn: LossFunction | None = None,
    make_optimizer: MakeOptimizer = adamw,
    seeds: Sequence[int] = (0, 1, 2),
) -> CoordinateCheck:
    """Train a few steps at several sizes on one batch, and fit how the RMS of activations goes with the size at every step.

    Under muP (Yang et al. 2022, arXiv:2203.03466, appendix D.1) all coordinates keep their size at every step; under the usual
    parametrization logits and writes grow with the width after the first steps.

    Args:
        make: returns a fresh model of a size, and a batch; weights are to depend on torch's global random state.
        sizes: at least three, in ascending order.
        axis: what ``make`` changes, for the words of the result: the state is that behind the last block either way.
        n_steps: optimizer steps; step 0 is before the first.
        lr: learning rate.
        loss_fn: as for ``examine``.
        make_optimizer: returns the optimizer of a model and a learning rate: muP's scales learning rates in here.
        seeds: of the weights.

    Raises:
        LabError: fewer than three sizes.
    """
    if len(set(sizes)) < 3:
        raise LabError(f"Expected at least three sizes, got {list(sizes)}. Of two, an exponent has no error.")
    rows: list[pd.DataFrame] = []
    with one_thread(), torch.random.fork_rng():
        for size in sizes:
            for seed in seeds:
                torch.manual_seed(seed)
                model, batch = make(size)
                # Without clipping: it would hide how gradients go with the size.
                _, recording = short_run(
                    model,
                    again(batch),
                    n_steps=n_steps + 1,
                    lr=lr,
                    loss_fn=loss_fn,
                    make_optimizer=make_optimizer,
                    clip=0.0,
                )
                assert recording is not None
                rows.append(coordinates(recording).assign(size=size, seed=seed))
    found = pd.concat(rows, ignore_index=True)[["size", "seed", "step", "coordinate", "rms"]]
    return CoordinateCheck(axis, found, _exponents(found))


def coordinates(recording: Recording) -> pd.DataFrame:
    """Return one row a step and coordinate: RMS of the last state and the logits, mean RMS of writes and of hidden layers.

    ``attention logit`` is the standard deviation of a query's logits, where exact attention was recorded.
    """
    rows = recording.table("activations", columns=["step", "site", "branch", "depth", "direction", "rms"])
    rows = rows[(rows["direction"] == "forward") & rows["site"].isin(list(SITES))]
    deepest = rows.loc[rows["site"] == "state", "depth"].max()
    rows = rows[(rows["site"] != "state") | (rows["depth"] == deepest)]
    kinds = np.where(rows["site"] == "write", rows["branch"] + " write", rows["site"].map(SITES))
    found = rows.assign(coordinate=kinds)[["step", "coordinate", "rms"]]
    heads = recording.table("attention", columns=["step", "head", "logit_std"])
    heads = heads[heads["head"] >= 0].rename(columns={"logit_std": "rms"}).assign(coordinate="attention logit").dropna()
    whole = pd.concat([found, heads[["step", "coordinate", "rms"]]], ignore_index=True)
    means: pd.DataFrame = whole.groupby(["step", "coordinate"], as_index=False).agg({"rms": "mean"})
    return means


def _exponents(sizes: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (step, coordinate), mine in sizes.groupby(["step", "coordinate"]):
        law = power_law(mine["size"].tolist(), mine["rms"].tolist())
        if law is not None:
            low, high = law.interval
            rows.append((step, coordinate, law.exponent, low, high, _verdict(law.exponent, low, high)))
    return pd.DataFrame(rows, columns=["step", "coordinate", "exponent", "low", "high", "verdict"])


def _verdict(exponent: float, low: float, high: float) -> str:
    if low > STEADY:
        return "grows"
    if high < -STEADY:
        return "shrinks"
    return "kept" if abs(exponent) <= STEADY else "unclear"
