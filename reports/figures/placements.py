"""Compare what norm placement does: the identity path, amplification, and what comes back through skips and branches."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rheoscope.diagnostics.comparison import first_step
from rheoscope.reports.compared import Compared

from .chart import Chart
from .panels import Line, panels


def skip_transmission(compared: Compared) -> Chart:
    """Draw the gain of the gradient along the skip path alone, at init, for every variant."""
    key = "skip-transmission"
    reading = (
        "The gain of the gradient along the skip path alone, from the last state down to each state, at init. 1 everywhere "
        "is an intact identity path. A norm on the stream divides by the size of its input at every add, so that what the "
        "skips carry falls with depth. Measured norm by norm with no branch taking part. Dashed: the closed form."
    )

    def lines(label: str) -> Iterable[Line]:
        frame = first_step(compared.starts[label].skip_transmission()).dropna(subset=["transmission"])
        yield Line(frame.sort_values("depth"), "depth", "transmission")
        if label in compared.predictions:
            yield Line(compared.predictions[label], "depth", "transmission", is_theory=True)

    table = compared.summary[["label", "placement", "n_blocks", "skip_transmission"]]
    if not table["skip_transmission"].notna().any():
        return Chart(key, "Skip transmission by depth", reading, absent="No hook sees the sums around the norms.")
    found = compared.by_placement("skip_transmission")
    title = f"At init, along the skips alone, the first block receives of the gradient's RMS: {found}"
    drawn = panels(compared, lines, x="depth: residual adds passed", y="skip transmission", log_y=True)
    return Chart(key, title, reading, drawn, table=table)


def amplification(compared: Compared) -> Chart:
    """Draw amplification against the number of blocks."""
    key, title = "amplification", "Amplification against depth"
    reading = (
        "How far the last state moves per unit of relative random change of all block weights, over its own size, at init: "
        "what an update, or noise in one, does to the output. The faster it grows with depth, the smaller a safe step. "
        "Published: Liu et al. 2020 find it to grow like the depth under post-norm, like its logarithm under pre-norm."
    )
    frame = compared.comparison.against_depth
    if not len(frame):
        return Chart(key, title, reading, absent="The variants were examined at one depth only.")

    def lines(label: str) -> Iterable[Line]:
        rows = frame[frame["label"] == label].sort_values("n_blocks")
        yield Line(rows, "n_blocks", "relative_amplification")

    drawn = panels(compared, lines, x="blocks", y="relative amplification", log_y=True, log_x=True)
    if compared.summary["amplification_exponent"].notna().any():
        powers = compared.by_placement("amplification_exponent")
        title = f"Relative amplification at init grows with the number of blocks to the power {powers}"
    return Chart(key, title, reading, drawn, table=frame)


def gradient_shares(compared: Compared) -> Chart:
    """Draw the branch's part of the gradient at every add, at init."""
    key, title = "gradient-shares", "The branch's part of the gradient at every add"
    reading = (
        "At every add, the RMS of the gradient that comes back through the branch over that along the skip, at init. Above 1 "
        "the gradient goes mainly through the branches: the identity path no longer leads."
    )

    def frame(label: str) -> pd.DataFrame:
        rows = first_step(compared.starts[label].paths()).dropna(subset=["skip_rms", "branch_rms"])
        return rows.assign(ratio=rows["branch_rms"] / rows["skip_rms"].where(rows["skip_rms"] > 0)).sort_values("depth")

    frames = {label: frame(label) for label in compared.comparison.labels}
    middle = {label: float(rows["ratio"].median()) for label, rows in frames.items() if rows["ratio"].notna().any()}
    if middle:
        title = f"What comes through a branch over what comes along its skip (median over adds): {compared.by_placement(middle)}"
    if not any(len(rows) for rows in frames.values()):
        return Chart(key, title, reading, absent="The two paths of the gradient were not recorded.")

    def lines(label: str) -> Iterable[Line]:
        yield Line(frames[label], "depth", "ratio")

    table = pd.concat([rows.assign(label=label) for label, rows in frames.items()], ignore_index=True)
    return Chart(key, title, reading, panels(compared, lines, x="depth", y="branch over skip", log_y=True), table=table)
