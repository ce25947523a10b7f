"""Hold a comparison with its tables opened once, and the style in which each variant is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.diagnostics.designs import outcomes
from rheoscope.diagnostics.opened import opened
from rheoscope.diagnostics.tables import Tables

from .theme import PALETTE, number, plain


@dataclass(frozen=True)
class Style:
    """How one variant looks in every chart: its colour, dash and marker, and the name in the legend."""

    name: str
    colour: str
    dash: str
    symbol: str


@dataclass(frozen=True)
class Compared:
    """A comparison, seen by the charts."""

    comparison: Comparison

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row a variant."""
        return self.comparison.summary()

    @cached_property
    def runs(self) -> dict[str, Tables]:
        """The training runs' tables, by label."""
        return {label: opened(recording) for label, recording in self.comparison.recordings.items()}

    @cached_property
    def starts(self) -> dict[str, Tables]:
        """The check-ups' tables at init, by label; the run's own where there is no check-up."""
        comparison = self.comparison
        return {
            label: opened(comparison.at_init[label]) if label in comparison.at_init else self.runs[label]
            for label in comparison.labels
        }

    @cached_property
    def predictions(self) -> dict[str, pd.DataFrame]:
        """The closed-form predictions at init, by label, where there are any."""
        return self.comparison.predictions()

    @cached_property
    def groups(self) -> list[str]:
        """What several variants share, in order of appearance: one panel of a chart each."""
        return list(dict.fromkeys(self.comparison.group(label) for label in self.comparison.labels))

    def members(self, group: str) -> Iterator[tuple[str, Style]]:
        """Yield the labels of a group with their styles."""
        for label in self.comparison.labels:
            if self.comparison.group(label) == group:
                yield label, self.styles[label]

    @cached_property
    def styles(self) -> dict[str, Style]:
        """Colour by placement and dash by biases where that tells the variants of a group apart, else colour by order."""
        rows = self.summary.set_index("label")
        placements = list(dict.fromkeys(rows["placement"]))
        pairs = rows.groupby("group")[["placement", "has_biases"]].apply(lambda group: not group.duplicated().any())
        if len(placements) > 1 and bool(pairs.all()):
            return {
                str(label): Style(
                    self.comparison.variant(str(label)),
                    PALETTE[placements.index(row["placement"]) % len(PALETTE)],
                    "solid" if row["has_biases"] else "dot",
                    "circle" if row["has_biases"] else "circle-open",
                )
                for label, row in rows.iterrows()
            }
        variants = list(dict.fromkeys(self.comparison.variant(label) for label in self.comparison.labels))
        return {
            label: Style(variant, PALETTE[variants.index(variant) % len(PALETTE)], "solid", "circle")
            for label in self.comparison.labels
            for variant in [self.comparison.variant(label)]
        }

    @cached_property
    def ends(self) -> list[int]:
        """The depth of the last add of every block, where all variants have the same; else nothing."""
        found = {
            tuple(max(branch.depth for branch in block) for block in recording.anatomy.blocks)
            for recording in self.comparison.recordings.values()
        }
        is_one = len(found) == 1 and all(len(r.anatomy.stacks) == 1 for r in self.comparison.recordings.values())
        return list(found.pop()) if is_one else []

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """The runs as cells of an experiment: see ``designs.outcomes``."""
        columns = ["step", "loss", "lr"]
        losses = {label: r.table("steps", columns=columns) for label, r in self.comparison.recordings.items()}
        return outcomes(self.summary, losses)

    def by_placement(self, values: str | Mapping[str, float]) -> str:
        """Return values by norm placement, group after group, in words: one value, or from which to which.

        Args:
            values: a column of the summary, or label -> value.
        """
        found = self.summary[values] if isinstance(values, str) else self.summary["label"].map(dict(values))
        rows = self.summary.assign(value=found).dropna(subset=["value"])
        parts = []
        for group in self.groups:
            inside = rows[rows["group"] == group]
            names = list(dict.fromkeys(inside["placement"]))
            text = ", ".join(
                f"{_span(inside[inside['placement'] == name]['value'])} under {name}-norm" for name in names
            )
            parts.append(f"{text} ({plain(group)})" if group else text)
        return "; ".join(parts)


def _span(values: pd.Series) -> str:
    low, high = number(float(values.min())), number(float(values.max()))
    return low if low == high else f"{low} to {high}"
