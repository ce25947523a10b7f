"""Say what a rank tells the others of each step, and make the rows of tables steps, groups and ranks of what all said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .anatomy import Anatomy
from .biases import biased
from .counted import Counted
from .distributed import Reduction
from .host_copies import ScalarCopies
from .joining import Joining, Lengths
from .kernels import COUNT, NONFINITE, SECOND
from .parameter_numbers import GRADIENT, WEIGHT
from .parameters import ParameterTaps
from .sample import Arriving, Sample
from .sites import Layout
from .spread import n_parts, share
from .step_gauge import Parts

# A word is of the step that ends: its number, whether it was sampled, whether that gave rows which were not agreed upon, until
# when steps are sampled in full, whether the probe closes.
STEP, IS_SAMPLED, HAS_NEWS, UNTIL, CLOSES = range(5)
# And of the step before: what took a copy from a device.
SAID = (
    "has_loss",
    "loss",
    "n_tokens",
    "seconds",
    "memory",
    "clip_energy",
    "clip_limit",
    "state",
    "gradient",
    "weights",
    "bad",
)


@dataclass
class HeldStep:
    """A step whose numbers are on their way.

    Attributes:
        row: of table steps.
        scalars: more of it, of this rank.
        groups: rows of table groups.
        parts: what else this rank knows of it.
        arriving: its measured numbers, where it was sampled.
        counted: and those between tokens.
        words: what all ranks said of it, shape (ranks, len(SAID)); None until that has come.
        joined: its numbers on their way between ranks; None where they are not joined.
        layout: and how they are laid out.
    """

    row: dict[str, Any]
    scalars: ScalarCopies
    groups: Sequence[Mapping[str, Any]] = ()
    parts: Parts | None = None
    arriving: Arriving | None = None
    counted: list[Counted] = field(default_factory=list)
    words: np.ndarray | None = None
    joined: Reduction | None = None
    layout: Lengths = field(default_factory=dict)


class Words:
    """What one rank says, and reads out of what all have said."""

    def __init__(self, n_ranks: int) -> None:
        """Speak to ``n_ranks``; of losses alone, until the model is known."""
        self._n_ranks = n_ranks
        self._is_cut = np.zeros(0, dtype=bool)
        self._first: int | None = None
        self._last: int | None = None

    def know(self, anatomy: Anatomy, layout: Layout, parameters: ParameterTaps) -> None:
        """Look up the first and the last state, and what a rank's part of each parameter counts."""
        held = parameters.held()
        self._shares = np.array([share(p, self._n_ranks) for _, p in held])
        self._is_cut = np.array([n_parts(p) > 1 for _, p in held], dtype=bool)
        by_name = {name: row for row, (name, _) in enumerate(held)}
        branches = biased(anatomy, set(by_name))
        self._bias_shares = np.array([self._shares[by_name[str(branch.output_bias)]] for branch in branches])
        self._shape = (2 * len(layout.points), anatomy.n_branches)
        rows = {point: row for row, point in enumerate(layout.points)}
        states = sorted((s for s in layout.sites if s.site == "state"), key=lambda s: (s.stack, s.depth))
        whole = [site for site in states if not site.is_partial]
        self._last = rows[states[-1].point] if states else None
        self._first = len(layout.points) + rows[whole[0].point] if whole else None

    def joining(self, n_slots: int) -> Joining:
        """Return the layout of what ranks join, of which ``n_slots`` train on the same data."""
        return Joining(self._shares, self._bias_shares, self._shape, n_slots)

    @staticmethod
    def nothing() -> list[float]:
        """Return what is said of no step."""
        return [0.0] + [math.nan] * (len(SAID) - 1)

    def numbers(self, held: HeldStep | None) -> list[float]:
        """Return what this rank says of a step."""
        if held is None:
            return self.nothing()
        loss, row, parts = held.scalars.values().get("loss"), held.row, held.parts
        clip = (math.nan, math.nan)
        if parts is not None and parts.clip is not None:
            clip = (float(parts.clip[0]) / self._n_ranks, parts.clip[1])
        said = [loss is not None, loss, row.get("n_tokens"), row.get("seconds"), row.get("memory_bytes"), *clip]
        return [math.nan if value is None else float(value) for value in said] + self._sizes(held.arriving)

    def _sizes(self, arriving: Arriving | None) -> list[float]:
        """Return RMS of the last state and of the own loss's gradient at the first, norm of weights, non-finite elements."""
        if arriving is None:
            return [math.nan] * 4
        sample = arriving.sample()
        weights = math.nan if sample.parameters is None else float(np.sqrt(sample.parameters[:, WEIGHT].sum()))
        if not sample.numbers:
            return [math.nan, math.nan, weights, math.nan]
        sums = np.stack([each.sums for each in sample.numbers]).sum(0)
        return [_rms(sums, self._last), _rms(sums, self._first), weights, float(sums[:, NONFINITE].sum())]

    def row(
        self, held: HeldStep, sample: Sample | None, n_slots: int
    ) -> tuple[dict[str, Any], ScalarCopies, list[dict[str, Any]]]:
        """Return a step's row of table steps, its scalars, and its rows of table groups, of all ranks together."""
        assert held.words is not None
        said = dict(zip(SAID, held.words.T, strict=True))
        values: dict[str, Any] = dict(held.scalars.values())
        losses = said["loss"][said["has_loss"] > 0]
        values |= {"loss": None, "lowest_loss": None, "highest_loss": None}
        if len(losses):
            values |= {
                "loss": float(losses.mean()),
                "lowest_loss": float(losses.min()),
                "highest_loss": float(losses.max()),
            }
        energies = None if sample is None or sample.parameters is None else sample.parameters[:, GRADIENT]
        has = np.array([] if sample is None else [state == "some" for state in sample.states], dtype=bool)
        every = range(len(has))
        values["gradient_norm"] = _norm(energies, has, every)
        for index, rows in enumerate(() if held.parts is None else held.parts.members):
            values[f"group {index}"] = _norm(energies, has, rows)
        clipped = said["clip_energy"].sum()
        if not math.isnan(clipped):
            values["unclipped_gradient_norm"] = math.sqrt(clipped)
            values["clip_coefficient"] = _coefficient(float(said["clip_limit"][0]), math.sqrt(clipped))
        tokens = said["n_tokens"].sum() / n_slots
        row = held.row | values | {"n_ranks": len(held.words), "n_tokens": None if math.isnan(tokens) else int(tokens)}
        scalars = ScalarCopies({name: None if value is None else torch.tensor(value) for name, value in values.items()})
        return row, scalars, [dict(group) for group in held.groups]

    @staticmethod
    def table(held: HeldStep, ranks: Sequence[int]) -> dict[str, Any]:
        """Return the columns of table ranks of one sampled step."""
        assert held.words is not None
        said = dict(zip(SAID, held.words.T.tolist(), strict=True))
        columns: dict[str, list[Any]] = {
            "loss": said["loss"],
            "seconds": said["seconds"],
            "memory_bytes": said["memory"],
            "state_rms": said["state"],
            "gradient_rms": said["gradient"],
            "weight_norm": said["weights"],
            "nonfinite": said["bad"],
        }
        # A loss that is NaN is told from none.
        has_loss = [bool(has) for has in said["has_loss"]]
        known = {name: [None if math.isnan(value) else value for value in values] for name, values in columns.items()}
        known["loss"] = [value if has else None for value, has in zip(said["loss"], has_loss, strict=True)]
        known["memory_bytes"] = [None if value is None else int(value) for value in known["memory_bytes"]]
        return {"step": [held.row["step"]] * len(ranks), "rank": list(ranks), **known}

    def own_row(self, row: Mapping[str, Any], scalars: ScalarCopies) -> dict[str, Any]:
        """Return a step's row of this rank alone, without norms of gradients of which it holds parts."""
        values = scalars.values()
        hidden = (
            [name for name in values if name == "gradient_norm" or name.startswith("group ")]
            if self._is_cut.any()
            else []
        )
        return {**row, **{name: value for name, value in values.items() if name not in hidden}}

    def hide_parts(self, sample: Sample) -> None:
        """Make unmeasured, in numbers of this rank alone, what it holds a part of."""
        if sample.parameters is not None:
            sample.parameters = np.where(self._is_cut[:, None], math.nan, sample.parameters)


def _rms(sums: np.ndarray, row: int | None) -> float:
    return math.nan if row is None or not sums[row, COUNT] else float(np.sqrt(sums[row, SECOND] / sums[row, COUNT]))


def _norm(energies: np.ndarray | None, has: np.ndarray, rows: Sequence[int]) -> float | None:
    chosen = [row for row in rows if row < len(has) and has[row]]
    if energies is None or not chosen:
        return None
    total = float(energies[chosen].sum())
    return None if math.isnan(total) else math.sqrt(total)


def _coefficient(limit: float, norm: float) -> float | None:
    """Return by what torch's clip function multiplied the gradients; None where several calls clipped."""
    return None if math.isnan(limit) else min(1.0, limit / (norm + 1e-6))
