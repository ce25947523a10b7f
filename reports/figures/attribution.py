"""Show which part is responsible: which blocks matter beside which are ill, whose writes, whose update, whose gradient."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from rheoscope.diagnostics.attributed import (
    block_usefulness,
    cut_totals,
    from_other_batch,
    gradient_shares,
    is_predictive,
    loss_of_knock_outs,
    output_ledger,
    updates,
)
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.frames import largest, records
from rheoscope.diagnostics.tables import Tables
from rheoscope.diagnostics.thresholds import INCOMPLETE, KNOCK_OUT_CERTAIN
from rheoscope.reports.theme import DEVIATES, PALETTE, axis, counted, figure, number, plain, plot_text

from .chart import Chart
from .places import n_stacks, place_name

MOST_BARS = 120
_ASK = "rheoscope.examine(model, batch, attribution=True) measures it."
_BOOKKEEPING = "The values add up to the change: that is bookkeeping along a straight path, not causality."


def usefulness(tables: Tables, diagnosis: Diagnosis) -> Chart:
    """Draw what the loss rises without each block, beside the blocks that are ill, and how far each turns the tokens."""
    key, title = "block-usefulness", "What each block is worth to the loss"
    reading = (
        "Above: the loss without all that a block writes, less the loss; bars are a standard error over the examples of the "
        "batch where they could be told apart, circles what gradient times activation says of it, to first order. Orange blocks "
        "have a warning or an error in the verdict. Below: the angle by which a block turns the tokens' states, over π. A "
        "knock-out takes one part from a model trained with all of them: parts that replace each other all look idle."
    )
    frame = block_usefulness(tables, tuple(diagnosis))
    if not len(frame):
        return Chart(key, title, reading, absent=f"No block was knocked out. {_ASK}")
    size = frame["knock_out"].abs()
    most, least = (records(frame.loc[[place]])[0] for place in (size.idxmax(), size.idxmin()))
    loss = loss_of_knock_outs(tables)
    of = "" if loss is None else f" of {number(loss)}"
    title = (
        f"Without block {int(most['block'])} the loss{of} changes most, by {number(float(most['knock_out']))}; without block "
        f"{int(least['block'])} least, by {number(float(least['knock_out']))}"
    )
    known = frame["is_useful"].notna()
    if known.any():
        n = int(frame.loc[known, "is_useful"].astype(bool).sum())
        title += (
            f"; {n} of {counted(int(known.sum()), 'block')} raise it beyond {KNOCK_OUT_CERTAIN:g} standard errors"
            if is_predictive(tables)
            else "; none is of use here: the loss is not certainly below that of the mean of the model's own predictions"
        )
    return Chart(key, title, reading, _two_panels(frame), table=frame)


def _two_panels(frame: pd.DataFrame) -> go.Figure:
    many = n_stacks(frame)
    names = [place_name(int(r["stack"]), int(r["block"]), "", n_stacks=many) for r in records(frame)]
    x = [plot_text(name) for name in names]
    made = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.65, 0.35], vertical_spacing=0.08)
    drawn = go.Figure(made).update_layout(figure(height=430).layout)
    said = [
        plot_text(f"{name}{': ' + code if code else ''}") for name, code in zip(names, frame["finding"], strict=True)
    ]
    colours = [DEVIATES if code else PALETTE[0] for code in frame["finding"]]
    errors = frame["standard_error"].fillna(0.0).tolist()
    hover = "%{customdata}<br>%{y:.4g}<extra>%{fullData.name}</extra>"
    bars = {"x": x, "customdata": said, "hovertemplate": hover}
    drawn.add_trace(
        go.Bar(
            y=frame["knock_out"].tolist(),
            marker={"color": colours},
            error_y={"array": errors, "visible": any(errors)},
            name="knock-out",
            **bars,
        ),
        row=1,
        col=1,
    )
    drawn.add_trace(
        go.Scatter(
            y=_values(frame["first_order"]),
            mode="markers",
            marker={"symbol": "circle-open", "size": 9, "color": PALETTE[7]},
            name="first order",
            **bars,
        ),
        row=1,
        col=1,
    )
    angles = go.Bar(y=_values(frame["angular_distance"]), marker={"color": PALETTE[5]}, name="angle / π", **bars)
    drawn.add_trace(angles, row=2, col=1)
    drawn.update_yaxes(**axis("rise of the loss"), row=1, col=1)
    drawn.update_yaxes(**axis("angle / π"), row=2, col=1)
    drawn.update_xaxes(type="category", nticks=min(len(x), 30))
    return drawn


def ledger(tables: Tables, diagnosis: Diagnosis) -> Chart:  # noqa: ARG001 - charts of this section are drawn alike
    """Draw what the embedding and every branch contribute to the change of the loss from a baseline."""
    key, title = "output-ledger", "What each branch contributes to the loss"
    reading = (
        "Change of the loss from a baseline{} to the batch, booked to the direct path of each write to the output; what a branch "
        "does by way of later branches is booked to those. Bars below 0 lower the loss. " + _BOOKKEEPING
    )
    frame, cuts = output_ledger(tables), cut_totals(tables)
    notes = [
        str(note).removeprefix("baseline: ") for note in pd.concat([frame["note"], cuts["note"]]).dropna().unique()
    ]
    reading = reading.format(f" ({plain(notes[-1])})" if notes else "")
    if not len(frame) and not len(cuts):
        return Chart(key, title, reading, absent=f"No ledger was made. {_ASK}")
    if not len(frame):
        total = float(cuts["total"].iloc[0])
        title = f"The ledger by branch does not apply here; every cut through the stream has the same total, {number(total)}"
        reading = (
            "Where norms stand on the stream, or the skip is gated, the last state is not the sum of the writes. Shown are "
            "captum's integrated gradients at cuts through the stream: that they agree is forced, and ranks nothing."
        )
        return Chart(key, title, reading, table=_shorter(cuts))
    total, error = float(frame["total"].iloc[0]), float(frame["error"].iloc[0])
    top = largest(frame.assign(size=frame["value"] * (1 if total >= 0 else -1)), "size")
    where = place_name(int(top["stack"]), int(top["block"]), str(top["branch"]))
    title = f"Beside the baseline the loss changes by {number(total)}; " + (
        f"the largest part is booked to {where}: {number(float(top['value']))} (the values add up to within {error:.2%})"
        if error <= INCOMPLETE
        else f"no part is named: the values miss it by {error:.0%}"
    )
    if len(cuts):
        reading += (
            f" captum's totals at {len(cuts)} cuts through the stream differ from the total by {_worst(cuts)} at most."
        )
    return Chart(
        key, title, reading, _bars(frame, "value", "change of the loss"), table=_shorter(frame, ["total", "error"])
    )


def blame(tables: Tables, diagnosis: Diagnosis) -> Chart:  # noqa: ARG001
    """Draw whose update changed the loss, at the step where it changed most."""
    key, title = "update-blame", "Whose update changed the loss"
    reading = (
        "Change of the loss of one fixed batch between the weights before and after an update, booked to the blocks along the "
        "straight line between the two. " + _BOOKKEEPING
    )
    frame = updates(tables)
    if not len(frame):
        why = (
            "No update was attributed: attach(..., blame=True) does at a spike of the loss, attribute_update on demand."
        )
        return Chart(key, title, reading, absent=why)
    step = int(largest(frame.assign(size=frame["total"].abs()), "size")["step"])
    shown = frame[frame["step"] == step]
    blocks = shown.groupby(["stack", "block"], as_index=False)["value"].sum()
    total, error = float(shown["total"].iloc[0]), float(shown["error"].iloc[0])
    at = "The update" if step < 0 else f"The update before step {step}"
    title = f"{at} changed the loss by {number(total)}; "
    own = blocks[blocks["block"] >= 0]
    if error <= INCOMPLETE and len(own):
        top = largest(own.assign(size=own["value"] * (1 if total >= 0 else -1)), "size")
        title += f"the largest part is booked to block {int(top['block'])}: {number(float(top['value']))} (within {error:.2%})"
    else:
        title += f"no block is named: the values miss it by {error:.0%}"
    switched = from_other_batch(tables).get(step)
    if switched is not None:
        reading += f" The change of batch alone, at the old weights, is kept apart: {number(switched)}."
    n = frame["step"].nunique()
    reading += f" Of {n} attributed updates the one with the largest change." if n > 1 else ""
    return Chart(key, title, reading, _bars(shown, "value", "change of the loss"), table=_shorter(frame))


def shares(tables: Tables, diagnosis: Diagnosis) -> Chart:  # noqa: ARG001
    """Draw which samples the largest gradient came from."""
    key, title = "gradient-shares", "Which samples the gradient came from"
    reading = (
        "Share of the squared norm of the block's gradient that came from each sample of the batch, by its index; the shares add "
        "up to 1, and one below 0 pulls the other way. The block is the one with the largest gradient; the numbers list all."
    )
    frame = gradient_shares(tables)
    if not len(frame):
        return Chart(key, title, reading, absent=f"No gradient was shared out. {_ASK}")
    top = largest(frame.fillna({"norm": 0.0}), "norm")
    samples = frame[frame["position"].isna()]
    mine = samples[(samples["stack"] == top["stack"]) & (samples["block"] == top["block"])]
    mine = mine.sort_values("share", ascending=False).head(MOST_BARS)
    first = records(mine)[0]
    error = float(first["error"])
    title = f"Of the gradient of block {int(top['block'])} " + (
        f"{number(100 * float(first['share']))} % came from sample {int(first['sample'])} of {len(mine)}"
        if error <= INCOMPLETE
        else f"no sample is named: the shares miss 1 by {error:.0%}"
    )
    drawn = figure(x="sample of the batch", y="share of the squared norm")
    hover = "sample %{x}<br>%{y:.4g}<extra></extra>"
    drawn.add_trace(go.Bar(x=[str(int(s)) for s in mine["sample"]], y=mine["share"].tolist(), hovertemplate=hover))
    drawn.update_xaxes(type="category", nticks=min(len(mine), 30))
    return Chart(key, title, reading, drawn, table=_shorter(samples, ["position"]))


def _bars(frame: pd.DataFrame, column: str, y: str) -> go.Figure:
    """Return one bar a place, those that raise the loss in one colour and those that lower it in another."""
    left_out = max(0, len(frame) - MOST_BARS)
    kept = frame.loc[frame[column].abs().nlargest(MOST_BARS).index].sort_index() if left_out else frame
    many = n_stacks(frame)
    names = []
    for row in records(kept):
        branch, block = str(row["branch"]), int(row["block"])
        name = plain(branch) if block < 0 else place_name(int(row["stack"]), block, branch, n_stacks=many)
        names.append(plot_text(name))
    values = _values(kept[column])
    drawn = figure(x=f"{left_out:,} smaller ones are not drawn" if left_out else "", y=y)
    colours = [PALETTE[1] if value is not None and value > 0 else PALETTE[0] for value in values]
    hover = "%{x}<br>%{y:.4g}<extra></extra>"
    drawn.add_trace(go.Bar(x=names, y=values, marker={"color": colours}, hovertemplate=hover))
    drawn.update_xaxes(type="category", nticks=min(len(names), 40))
    return drawn


def _shorter(frame: pd.DataFrame, without: Sequence[str] = ()) -> pd.DataFrame:
    """Return a table without the columns that are told elsewhere or tell nothing."""
    empty = [name for name in ("step", "module_path") if name in frame and frame[name].isin([-1, None]).all()]
    return frame.drop(columns=[*without, *empty, *(["note"] if "note" in frame else [])])


def _worst(cuts: pd.DataFrame) -> str:
    return f"{100 * float(cuts['error'].max()):.2g} %"


def _values(values: pd.Series) -> list[float | None]:
    return [None if pd.isna(value) else float(value) for value in values]
