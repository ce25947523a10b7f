"""Compare signal and gradient by depth, at init, with the closed-form prediction over the measurement."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from rheoscope.diagnostics.comparison import first_step
from rheoscope.diagnostics.frames import block_states
from rheoscope.reports.compared import Compared

from .chart import Chart
from .panels import Line, panels


def state_rms(compared: Compared) -> Chart:
    """Draw the RMS of every state at init, with the closed form."""
    key, title = "state-rms", "State RMS by depth at init"
    reading = (
        "Root mean square of every state at init; dashed the closed form, which starts from the measured state 0. Under "
        "pre-norm every branch adds energy; under post-norm every state is normed to 1."
    )
    frames = {label: first_step(tables.state_rms()) for label, tables in compared.starts.items()}
    if not any(len(rows) for rows in frames.values()):
        return Chart(key, title, reading, absent="No state was recorded.")
    growths = {label: growth for label, rows in frames.items() if (growth := _growth(rows)) is not None}
    if growths:
        title = f"At init the stream's RMS grows from the first block to the last by a factor of {compared.by_placement(growths)}"
    return _profile(compared, frames, key, title, reading, "rms", "state RMS")


def gradient_rms(compared: Compared) -> Chart:
    """Draw the gradient RMS of every state at init, the embedding's apart, with the closed form."""
    key, title = "gradient-rms", "Gradient RMS by depth at init"
    reading = (
        "Root mean square of the loss's gradient with respect to every state at init; depth 0 is the embedding's own "
        "state. Dashed: the closed form, scaled to the last state. This profile alone does not show what post-norm loses: "
        "it can look flatter than pre-norm's while the identity path under it is gone (see skip transmission). "
        "Published: Xiong et al. 2020, figure 3, where the weights' gradients of an encoder-decoder grow towards the "
        "output under post-norm; those of a stack without cross-attention hardly do."
    )
    frames = {label: first_step(tables.gradient_profile()) for label, tables in compared.starts.items()}
    if not any(len(rows) for rows in frames.values()):
        return Chart(key, title, reading, absent="No backward pass was recorded.")
    if compared.summary["gradient_ratio"].notna().any():
        title = (
            f"Gradient RMS after the first block over that after the last: {compared.by_placement('gradient_ratio')}"
        )
    return _profile(compared, frames, key, title, reading, "gradient", "gradient RMS")


def _growth(frame: pd.DataFrame) -> float | None:
    blocks = block_states(frame).sort_values(["stack", "depth"])["rms"]
    return float(blocks.iloc[-1] / blocks.iloc[0]) if len(blocks) > 1 and blocks.iloc[0] > 0 else None


def _profile(
    compared: Compared, frames: dict[str, pd.DataFrame], key: str, title: str, reading: str, column: str, y: str
) -> Chart:
    def lines(label: str) -> Iterable[Line]:
        yield Line(frames[label].sort_values(["stack", "depth"]), "depth", "rms")
        if label in compared.predictions:
            yield Line(compared.predictions[label], "depth", column, is_theory=True)

    drawn = panels(compared, lines, x="depth: residual adds passed", y=y, log_y=True)
    table = pd.concat([rows.assign(label=label) for label, rows in frames.items()], ignore_index=True)
    wanted = ["label", "stack", "depth", "block", "branch", "rms"]
    return Chart(key, title, reading, drawn, table=table[wanted])
