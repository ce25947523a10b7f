"""Carry what grows with the size of a model on to a size that is too dear to try, and say how well that works."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from rheoscope.probes.batches import Batch
from rheoscope.probes.errors import LabError
from rheoscope.probes.losses import LossFunction
from rheoscope.probes.recording import Recording
from torch import nn

from .power_law import power_law
from .short_run import MakeOptimizer, adamw, again, short_run
from .stability import largest_stable
from .threads import one_thread

Make = Callable[[int, int], tuple[nn.Module, Batch]]
OnProgress = Callable[[int, int, str], None]
ADAM_EPSILON = 1e-8
# What is carried on, and the limit that it must not pass: above or below.
LIMITS = {
    "largest attention logit": (1e4, "above it training fails (Wortsman et al. 2023, section 3.1)"),
    "RMS of the last state": (65_504.0, "fp16's largest number"),
    "gradient RMS over Adam's epsilon": (1.0, "below it the update is damped (Wortsman et al. 2023, section 3.4)"),
    "largest stable learning rate": (math.nan, "use less"),
}


@dataclass(frozen=True)
class ScaleUp:
    """What four small sizes say of a larger one.

    Attributes:
        measured: one row a size: ``width``, ``depth``, ``n_parameters`` and the quantities.
        predicted: one row a quantity: its ``exponent`` in the number of parameters, its value at the ``target`` with ``low`` and
            ``high`` of the 95 % band, ``limit`` and ``remark``; and of the backtest, in which the largest size is foretold from
            the smaller ones, ``backtest`` (predicted over measured) and ``is_inside``, whether it lay in the band.
        n_parameters: of the target.
    """

    measured: pd.DataFrame
    predicted: pd.DataFrame
    n_parameters: int


def scale_up(
    make: Make,
    sizes: Sequence[tuple[int, int]],
    target: tuple[int, int],
    *,
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2),
    n_steps: int = 100,
    loss_fn: LossFunction | None = None,
    make_optimizer: MakeOptimizer = adamw,
    seeds: Sequence[int] = (0, 1),
    on_progress: OnProgress | None = None,
) -> ScaleUp:
    """Train small widths and depths of a model, and carry four quantities on to the target by a power of its parameters.

    Args:
        make: returns a fresh model of a (width, depth), and a batch; weights are to depend on torch's global random state.
        sizes: at least four pairs (width, depth), in ascending order.
        target: the pair to be foretold; its model is made on the meta device, and only counted.
        rates: learning rates that are tried at every size; quantities are those at the best one.
        n_steps: of each run.
        loss_fn: as for ``examine``.
        make_optimizer: returns the optimizer of a model and a learning rate.
        seeds: of the weights; quantities are means over them.
        on_progress: called with (runs done, runs in all, what is next).

    Raises:
        LabError: fewer than four sizes.
    """
    if len(set(sizes)) < 4:
        raise LabError(
            f"Expected at least four sizes, got {list(sizes)}. With three nothing is left to try the law on."
        )
    rows = []
    total = len(sizes) * len(rates) * len(seeds)
    with one_thread(), torch.random.fork_rng():
        for index, size in enumerate(sizes):
            runs = []
            for part, (rate, seed) in enumerate((rate, seed) for rate in rates for seed in seeds):
                if on_progress:
                    on_progress(
                        index * len(rates) * len(seeds) + part, total, f"width {size[0]}, depth {size[1]}, {rate:g}"
                    )
                torch.manual_seed(seed)
                model, batch = make(*size)
                losses, recording = short_run(
                    model,
                    again(batch),
                    n_steps=n_steps,
                    lr=rate,
                    loss_fn=loss_fn,
                    make_optimizer=make_optimizer,
                    every=10,
                )
                assert recording is not None
                runs.append(_run(rate, losses, recording))
            rows.append(
                {"width": size[0], "depth": size[1], "n_parameters": _count(model), **_of_size(pd.DataFrame(runs))}
            )
        if on_progress:
            on_progress(total, total, "done")
        with torch.device("meta"):
            n_parameters = _count(make(*target)[0])
    measured = pd.DataFrame(rows)
    return ScaleUp(measured, pd.DataFrame([_predicted(measured, name, n_parameters) for name in LIMITS]), n_parameters)


def _run(rate: float, losses: list[float], recording: Recording) -> dict[str, float]:
    states = recording.table("activations", columns=["site", "direction", "depth", "rms"])
    states = states[(states["site"] == "state") & (states["direction"] == "forward")]
    gradients = recording.table("parameters", columns=["role", "gradient_rms"])
    logits = recording.table("attention", columns=["head", "logit_max"])
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "rate": rate,
        "first": losses[0],
        "last": sum(tail) / len(tail) if math.isfinite(losses[-1]) else math.inf,
        "largest attention logit": float(logits["logit_max"].max()) if len(logits) else math.nan,
        "RMS of the last state": float(states.loc[states["depth"] == states["depth"].max(), "rms"].max()),
        "gradient RMS over Adam's epsilon": float(gradients.loc[gradients["role"] == "weight", "gradient_rms"].median())
        / ADAM_EPSILON,
    }


def _of_size(runs: pd.DataFrame) -> dict[str, float]:
    """Return the quantities at the best learning rate, and the largest stable one."""
    losses = {float(rate): runs.loc[runs["rate"] == rate, "last"].tolist() for rate in runs["rate"].unique()}
    best = min(losses, key=lambda rate: math.fsum(losses[rate]))
    stable = largest_stable(losses, float(runs["first"].mean()))
    at_best = runs[runs["rate"] == best].mean()
    found = {name: float(at_best[name]) for name in LIMITS if name in at_best}
    return {"best learning rate": best, **found, "largest stable learning rate": math.nan if stable is None else stable}


def _predicted(measured: pd.DataFrame, name: str, n_parameters: int) -> dict[str, object]:
    limit, remark = LIMITS[name]
    sizes, values = measured["n_parameters"].tolist(), measured[name].tolist()
    law, before = power_law(sizes, values), power_law(sizes[:-1], values[:-1])
    row: dict[str, object] = {"quantity": name, "limit": limit, "remark": remark}
    if law is None or law.n < 4:
        return row | {"exponent": None, "target": None, "low": None, "high": None, "backtest": None, "is_inside": None}
    value, low, high = law.at(n_parameters)
    row |= {"exponent": law.exponent, "target": value, "low": low, "high": high}
    if before is None or not math.isfinite(values[-1]):
        return row | {"backtest": None, "is_inside": None}
    told, least, most = before.at(sizes[-1])
    return row | {"backtest": told / values[-1], "is_inside": least <= values[-1] <= most}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
