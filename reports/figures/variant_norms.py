"""Compare what every norm does: how large its input is, its gain on the way back, what it takes away with the mean."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rheoscope.diagnostics.comparison import first_step
from rheoscope.reports.compared import Compared

from .chart import Chart
from .norms import one_a_place
from .panels import Line, panels

_NO_NORM = "No norm was found between tensors that are recorded."


def norm_inputs(compared: Compared) -> Chart:
    """Draw the RMS of what every norm reads."""
    reading = (
        "Root mean square of each norm's input at init, the final norm's last. A norm multiplies by about one over this, forward "
        "and back. Under pre-norm the inputs grow with the stream, so that later blocks change it less and less; under post-norm "
        "each norm reads one normed state plus one write."
    )
    said = ("norm-inputs", "RMS of what every norm reads", "At init, the largest input RMS over the smallest is")
    return _drawn(compared, said, reading, "input_rms", "input RMS", log=True)


def norm_gains(compared: Compared) -> Chart:
    """Draw the gain of the gradient through every norm."""
    reading = (
        "RMS of the gradient at a norm's input over RMS of the gradient at its output, through this norm alone, at init. Under "
        "post-norm the norms stand on the stream, and these gains multiply along depth; under pre-norm each scales one branch's "
        "gradient and no other."
    )
    said = ("norm-gains", "Gain of the gradient through every norm", "At init, the largest gain over the smallest is")
    return _drawn(compared, said, reading, "jacobian_gain", "gain of the gradient", log=True)


def mean_energy(compared: Compared) -> Chart:
    """Draw the share of energy that every LayerNorm takes away with the mean."""
    reading = (
        "Share of a norm's input energy that lies in the tokens' own means, at init: what a LayerNorm subtracts and an RMSNorm "
        "would keep. Near 0 the two are the same but for their parameters."
    )
    said = (
        "mean-energy",
        "Mean energy that LayerNorms remove",
        "At init, the largest share of energy removed with the mean is",
    )
    return _drawn(compared, said, reading, "mean_energy_removed", "share of energy", log=False)


def _drawn(compared: Compared, said: tuple[str, str, str], reading: str, column: str, y: str, *, log: bool) -> Chart:
    key, title, words = said
    frames = {
        label: _norms(first_step(one_a_place(tables, column)), column) for label, tables in compared.starts.items()
    }
    frames = {label: frame for label, frame in frames.items() if len(frame)}
    if not frames:
        return Chart(key, title, reading, absent=_NO_NORM)

    def lines(label: str) -> Iterable[Line]:
        if label in frames:
            yield Line(frames[label].sort_values(["stack", "depth"]), "depth", column)

    top = {label: float(frame[column].max()) for label, frame in frames.items()}
    if log:
        low = {label: float(frame[column].min()) for label, frame in frames.items()}
        top = {label: value / low[label] for label, value in top.items() if low[label] > 0}
    drawn = panels(compared, lines, x="depth: residual adds passed", y=y, log_y=log)
    table = pd.concat([frame.assign(variant=label) for label, frame in frames.items()], ignore_index=True)
    return Chart(key, f"{words} {compared.by_placement(top)}" if top else title, reading, drawn, table=table)


def _norms(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the norms that can take away a mean where that is what is drawn, else all."""
    return frame[frame["kind"] == "layernorm"] if column == "mean_energy_removed" else frame
