"""Find loss spikes: steps whose loss leaves the band of the steps before, and whether it came back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .finding import Evidence, Finding
from .tables import Tables
from .thresholds import (
    SPIKE_BACK,
    SPIKE_BAND,
    SPIKE_BAND_LEAST,
    SPIKE_BEFORE,
    SPIKE_GRADIENT,
    SPIKE_LASTS,
    SPIKE_LEAST_RISE,
    SPIKE_SCORE,
    SPIKE_SIGMAS,
    SPIKE_WINDOW,
)

_HALF = 2  # steps either side of a running median of five: one ill batch moves none
_OF_NORMAL = 1.349  # interquartile range of a Gaussian in standard deviations


@dataclass(frozen=True)
class Episode:
    """A stretch of steps whose running median of the loss lies above the band of the steps before it.

    Attributes:
        first: its first step.
        last: its last step.
        usual: median loss before.
        limit: upper end of the band.
        highest: the largest loss in it.
        is_over: whether the loss came back, to within SPIKE_BACK of the band above ``usual``.
    """

    first: int
    last: int
    usual: float
    limit: float
    highest: float
    is_over: bool


def spike_score(losses: np.ndarray) -> float:
    """Return the share of values at least SPIKE_SIGMAS standard deviations above the mean of up to SPIKE_WINDOW before them.

    OLMo et al. 2024 (OLMo 2), section 3.2. NaN where there are too few to have a band.

    Args:
        losses: (steps,), finite.
    """
    before = pd.Series(losses).shift(1).rolling(SPIKE_WINDOW, min_periods=SPIKE_BAND_LEAST)
    mean, spread = before.mean().to_numpy(), before.std().to_numpy()
    known = np.isfinite(mean) & (spread > 0)
    if not known.any():
        return float("nan")
    return float((losses[known] >= mean[known] + SPIKE_SIGMAS * spread[known]).mean())


def episodes(steps: np.ndarray, losses: np.ndarray) -> list[Episode]:
    """Return where the running median of the loss leaves the band: median and SPIKE_SIGMAS robust deviations of those before.

    Args:
        steps: (steps,), rising.
        losses: (steps,), finite.
    """
    level = pd.Series(losses).rolling(2 * _HALF + 1, center=True, min_periods=1).median().to_numpy()
    usual, limit = _band(losses)
    above = np.flatnonzero(level > limit)  # never where the band is not known
    found = []
    start = 0
    while (place := int(np.searchsorted(above, start))) < len(above):
        first = int(above[place])
        back = np.flatnonzero(level[first:] <= usual[first] + SPIKE_BACK * (limit[first] - usual[first]))
        end = first + int(back[0]) if len(back) else len(level)
        found.append(
            Episode(
                int(steps[first]), int(steps[end - 1]), float(usual[first]), float(limit[first]), float(losses[first:end].max()),
                is_over=bool(len(back)),
            )
        )  # fmt: skip
        start = end + 1
    return found


def _band(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return median and upper limit of the losses before each, NaN where they are too few."""
    # What a running median sees is not among what it is held against.
    before = pd.Series(losses).shift(_HALF + 1).rolling(SPIKE_BAND, min_periods=SPIKE_BAND_LEAST)
    usual = before.median().to_numpy()
    spread = (before.quantile(0.75) - before.quantile(0.25)).to_numpy() / _OF_NORMAL
    return usual, usual + np.maximum(SPIKE_SIGMAS * spread, SPIKE_LEAST_RISE * np.abs(usual))


def loss_episodes(tables: Tables) -> list[Episode]:
    """Return the episodes of a run's loss."""
    return episodes(*_losses(tables))


def _losses(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    rows = tables.losses.dropna()
    rows = rows[np.isfinite(rows["loss"].to_numpy(float))]
    return rows["step"].to_numpy(int), rows["loss"].to_numpy(float)


def loss_spikes(tables: Tables) -> list[Finding]:
    """Report where the loss left its band for more than a batch, how often, and whose gradient rose first.

    It is a warning where the loss never came back, or such steps are more than SPIKE_SCORE of the run, and the gradient norm rose
    with it or is not known: where it did not, the data may have changed. Single batches that stand out are remarked on.
    """
    steps, losses = _losses(tables)
    score = spike_score(losses)
    found = episodes(steps, losses)
    if not found:
        above = losses > _band(losses)[1]
        return [_of_batches(steps, losses, above, score)] if above.any() else []
    worst = max(found, key=lambda one: (not one.is_over, one.highest - one.usual))
    rise = _gradient_rise(tables, worst.first)
    share = sum(int(((steps >= one.first) & (steps <= one.last)).sum()) for one in found) / len(steps)
    has_risen = rise is None or rise >= SPIKE_GRADIENT
    lasts = any(one.last - one.first + 1 >= SPIKE_LASTS for one in found)
    is_ill = has_risen and (not worst.is_over or (share > SPIKE_SCORE and lasts))
    place = _first_block(tables, worst.first)
    first = "" if place is None else f"block {place[1]}{tables.stack_name(place[0])}"
    return [
        Finding(
            code="loss-spike",
            severity="warning" if is_ill else "info",
            confidence=0.7,
            block=None if place is None else place[1],
            stack=None if place is None else place[0],
            component="loss",
            module_path="",
            step=worst.first,
            sentence=_sentence(worst, found, len(steps), rise, first),
            evidence=Evidence(
                "largest loss of the spike",
                worst.highest,
                worst.usual,
                f"median of up to {SPIKE_BAND} steps before",
                worst.limit,
            ),
            remedy="Go back to a checkpoint before the spike and skip its batches, or lower the learning rate; clip "
            "gradients. attach(triggered=...) samples such steps in full."
            if is_ill
            else "None needed where it stays alone; look at the batches around it.",
            reference="Chowdhery et al. 2022 (PaLM), section 5.1; OLMo et al. 2024 (OLMo 2), section 3.2: spike score.",
        )
    ]


def _sentence(worst: Episode, found: list[Episode], n_steps: int, rise: float | None, first: str) -> str:
    n = worst.last - worst.first + 1
    back = (
        f"and came back after {n} step{'s' if n > 1 else ''}" if worst.is_over else "and had not come back by the end"
    )
    told = (
        f"The loss left its band at step {worst.first:,}: up to {worst.highest:.3g}, {worst.usual:.3g} before, limit "
        f"{worst.limit:.3g}; {back}"
    )
    if len(found) > 1:
        told += f". It left it {len(found)} times in {n_steps:,} steps"
    if rise is not None:
        told += (
            f". The gradient norm rose {rise:.2g}-fold"
            if rise >= SPIKE_GRADIENT
            else ". The gradient norm did not rise with it"
        )
    return told + (f"; the gradient of the weights of {first} was the first to rise." if first else ".")


def _of_batches(steps: np.ndarray, losses: np.ndarray, above: np.ndarray, score: float) -> Finding:
    top = int(np.argmax(np.where(above, losses, -np.inf)))
    return Finding(
        code="spike-score",
        severity="info",
        confidence=0.9,
        block=None,
        component="loss",
        module_path="",
        step=int(steps[top]),
        sentence=f"{int(above.sum()):,} of {len(steps):,} steps have a loss far above those before, such as "
        f"{losses[top]:.3g} at step {int(steps[top]):,}, and none drew the next ones along: batches that differ, or single "
        f"steps too far. Spike score {0.0 if math.isnan(score) else score:.2%}.",
        evidence=Evidence(
            "share of steps 7 standard deviations up", score, 0.0, "up to 1,000 steps before", SPIKE_SCORE
        ),
        remedy="None needed; look at these batches.",
        reference="OLMo et al. 2024 (OLMo 2), section 3.2: spike score.",
    )


def _gradient_rise(tables: Tables, step: int) -> float | None:
    """Return the largest gradient norm around the first step of a spike over its median before; None where it is not known."""
    rows = tables.recording.table("steps", columns=["step", "gradient_norm", "unclipped_gradient_norm"])
    norms = rows["unclipped_gradient_norm"].astype(float).fillna(rows["gradient_norm"].astype(float))
    steps = rows["step"].to_numpy(float)
    near = norms[(steps >= step - SPIKE_BEFORE) & (steps <= step + _HALF)].dropna()
    usual = norms[(steps < step - SPIKE_BEFORE) & (steps >= step - SPIKE_BAND)].median()
    return float(near.max() / usual) if len(near) and usual > 0 else None


def _first_block(tables: Tables, step: int) -> tuple[int, int] | None:
    """Return stack and block whose weights' gradient rose above its own size first; None where no sampled step shows it."""
    rows = tables.parameters
    rows = rows[(rows["block"] >= 0) & (rows["role"] == "weight") & rows["gradient_rms"].notna()]
    sizes = (
        rows.assign(energy=rows["n"] * rows["gradient_rms"] ** 2)
        .groupby(["step", "stack", "block"])["energy"]
        .sum()
        .unstack(["stack", "block"])
    )
    coefficients = tables.steps.set_index("step")["clip_coefficient"].astype(float).reindex(sizes.index).fillna(1.0)
    sizes = sizes.pow(0.5).div(coefficients.where(coefficients > 0), axis=0)
    usual = sizes[(sizes.index < step - SPIKE_BEFORE) & (sizes.index >= step - SPIKE_BAND)].median()
    near = sizes[(sizes.index >= step - SPIKE_BEFORE) & (sizes.index <= step + _HALF)] / usual.where(usual > 0)
    for _, ratios in near.iterrows():
        if float(ratios.max()) > SPIKE_GRADIENT:
            places = sizes.columns.to_frame(index=False).astype(int)
            stack, block = places.iloc[int(np.nanargmax(ratios.to_numpy(float)))].tolist()
            return stack, block
    return None
