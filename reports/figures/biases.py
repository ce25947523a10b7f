"""Show what the biases do: their share of what branches write, and of the gradient."""

from __future__ import annotations

from rheoscope.diagnostics.block_parameters import block_rms
from rheoscope.diagnostics.coherence import bias_coherence
from rheoscope.diagnostics.redundant_biases import redundant_biases, summed
from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .heatmap import heatmap
from .profile import profile

_NO_BIAS = "No branch of this model ends in a bias that a hook can tell apart."


def bias_share(tables: Tables) -> Chart:
    """Draw the bias share of every branch at every sampled step."""
    frame = tables.bias_share().dropna(subset=["bias_share"])
    key, title = "bias-share", "Bias share of every branch"
    reading = (
        "Energy of the last projection's bias over energy of the branch's output: the part that is the same vector at every "
        "token. 0 at the usual init; what it grows to is what the biases do."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_BIAS)
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["bias_share"].idxmax()]
    title = (
        f"The largest bias share is {number(float(top['bias_share']))}, in block {int(top['block'])}'s {top['branch']} "
        f"(step {int(top['step'])})"
    )
    return Chart(key, title, reading, heatmap(frame, "bias_share", "bias share", log=False), table=frame)


def drift(tables: Tables) -> Chart:
    """Draw the RMS of every block's biases at every sampled step."""
    frame = block_rms(tables, ["bias", "norm_bias"]).dropna(subset=["rms"])
    key, title = "bias-drift", "Size of every block's biases"
    reading = (
        "RMS over all biases of a block, those of its norms included, after the optimizer's step. Nothing in the loss holds a "
        "bias in place: a row that keeps brightening drifts."
    )
    if not len(frame):
        return Chart(key, title, reading, absent="No block of this model has biases.")
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["rms"].idxmax()]
    start = frame[
        (frame["step"] == frame["step"].min()) & (frame["block"] == top["block"]) & (frame["stack"] == top["stack"])
    ]
    title = f"The largest biases are block {int(top['block'])}'s: RMS {number(float(top['rms']))}"
    if frame["step"].nunique() > 1:
        title += f", from {number(float(start['rms'].iloc[0]))} at the first sampled step"
    return Chart(key, title, reading, heatmap(frame, "rms", "bias RMS", by="block"), table=frame)


def bias_gradient_share(tables: Tables) -> Chart:
    """Draw the share of each block's gradient energy that its biases receive."""
    frame = tables.bias_gradient_share().dropna(subset=["share"])
    key, title = "bias-gradient-share", "Share of the gradient's energy that the biases receive"
    reading = (
        "Squared gradient norm of all biases of a block over that of all its parameters. A bias gathers the gradient of "
        "every token, so that few parameters can hold much of it."
    )
    if not len(frame) or not (frame["share"] > 0).any():
        return Chart(key, title, reading, absent="No bias inside a block received a gradient.")
    last = frame[frame["step"] == frame["step"].max()]
    title = f"The biases receive {number(float(last['share'].mean()))} of a block's gradient energy (mean, last sampled step)"
    return Chart(key, title, reading, heatmap(frame, "share", "share", by="block", log=False), table=frame)


def coherence(tables: Tables) -> Chart:
    """Draw how far the tokens' gradients at each branch's last bias agree."""
    frame = bias_coherence(tables).dropna(subset=["coherence"])
    key, title = "bias-coherence", "Coherence of bias gradients"
    reading = (
        "Squared norm of the bias's gradient over the sum of the squared norms of the tokens' gradients that it is the sum of. "
        "1: the tokens point in random directions; the number of tokens: all in one. What all tokens share, such as the "
        "frequency of words, a bias collects more of than a matrix does; the table's column bias weight ratio says how much more."
    )
    if not len(frame):
        return Chart(
            key, title, reading, absent=f"{_NO_BIAS} Or gradients were clipped apart, or kept from other steps."
        )
    last = frame[frame["step"] == frame["step"].max()]
    top = last.loc[last["coherence"].idxmax()]
    title = (
        f"The bias gradient of block {int(top['block'])}'s {top['branch']} has {number(float(top['coherence']))} times the "
        "energy of random directions"
    )
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "coherence", "times random directions"),
        table=frame,
    )


def redundant(tables: Tables) -> Chart:
    """List the biases with directions that have no gradient by construction."""
    frame = redundant_biases(tables)
    key, title = "redundant-biases", "Bias directions without any gradient"
    reading = (
        "Exact, whatever the weights: a bias on the keys shifts all logits of a query alike, which the softmax takes away "
        "(without rotary positions and QK-norm); the mean of a bias that only LayerNorms read is subtracted by them. Measured: "
        "the largest gradient of such a key bias over that of the branch's other biases, 0 up to rounding."
    )
    if not len(frame):
        return Chart(
            key, title, reading, absent="No bias of this model is proved to be redundant in part by its anatomy."
        )
    n, of = int(frame["redundant"].sum()), int(frame.drop_duplicates("bias")["size"].sum())
    title = f"{n:,} of the {of:,} numbers in {frame['bias'].nunique():,} bias vectors have no gradient at all"
    return Chart(
        key, title, reading, table=summed(frame, ["stack", "branch"] if frame["stack"].nunique() > 1 else ["branch"])
    )
