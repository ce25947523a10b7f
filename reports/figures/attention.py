"""Show attention: its largest logits, its sharpest heads, its sinks; how alike tokens become; and the load of experts."""

from __future__ import annotations

from rheoscope.diagnostics.tables import Tables
from rheoscope.reports.theme import number

from .chart import Chart
from .heatmap import heatmap
from .profile import profile

_NO_ATTENTION = "No attention call was seen: nothing was sampled, or the attention kernel hides its logits."
_NO_TOKENS = "Tokens were not compared in this recording."


def largest_logits(tables: Tables) -> Chart:
    """Draw the largest attention logit of every block at every sampled step, over its heads."""
    top = tables.attention_by_block()
    key, title = "attention-logits", "Largest attention logit of every block"
    reading = (
        "The largest logit that enters a softmax, over heads, queries and keys. A row that brightens with the steps is a "
        "block whose logits grow: above a few tens, attention looks at one token alone and passes on no gradient."
    )
    if not len(top):
        return Chart(key, title, reading, absent=_NO_ATTENTION)
    last = top[top["step"] == top["step"].max()].reset_index(drop=True)
    row = last.iloc[int(last["logit_max"].to_numpy().argmax())]
    title = f"The largest attention logit is {number(float(row['logit_max']))}, in block {int(row['block'])} (last sampled step)"
    return Chart(key, title, reading, heatmap(top, "logit_max", "logit", by="block", log=False), table=last)


def sharpest_heads(tables: Tables) -> Chart:
    """Draw the lowest entropy ratio over the heads of every block at every sampled step."""
    frame = tables.attention().dropna(subset=["entropy_ratio"])
    key, title = "attention-entropy", "Sharpest head of every block"
    reading = (
        "Entropy of attention over the logarithm of the number of visible tokens, the lowest over a block's heads: 1 spreads "
        "evenly, 0 looks at one token. A block that falls to 0 has a collapsed head."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_ATTENTION)
    low = tables.attention_by_block()
    last = frame[frame["step"] == frame["step"].max()].reset_index(drop=True)
    row = last.iloc[int(last["entropy_ratio"].to_numpy().argmin())]
    where = (
        f"head {int(row['head'])} of block {int(row['block'])}" if row["head"] >= 0 else f"block {int(row['block'])}"
    )
    title = f"The sharpest attention has {number(float(row['entropy_ratio']))} of the largest entropy: {where}"
    return Chart(key, title, reading, heatmap(low, "entropy_ratio", "entropy ratio", by="block", log=False), table=last)


def sinks(tables: Tables) -> Chart:
    """Draw the share of attention on the first token, the largest over the heads of every block."""
    top = tables.attention_by_block().dropna(subset=["sink_share"])
    key, title = "attention-sinks", "Attention on the first token"
    reading = (
        "Share of attention on the first token, the largest over a block's heads. Heads with nothing to say park there."
    )
    if not len(top):
        return Chart(key, title, reading, absent=_NO_ATTENTION)
    last = top[top["step"] == top["step"].max()]
    title = f"Up to {number(float(last['sink_share'].max()))} of a head's attention lies on the first token"
    return Chart(key, title, reading, heatmap(top, "sink_share", "share", by="block", log=False), table=last)


def token_similarity(tables: Tables) -> Chart:
    """Draw the mean cosine between tokens at every state."""
    frame = tables.tokens().dropna(subset=["cosine"])
    key, title = "token-similarity", "How alike the tokens are"
    reading = (
        "Mean cosine between the states of two tokens of a sequence. Near 1 all tokens say the same: rank collapse, after "
        "which attention can tell nothing apart."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_TOKENS)
    last = frame[frame["step"] == frame["step"].max()].sort_values(["stack", "depth"])
    title = f"At the last state the tokens' mean cosine is {number(float(last['cosine'].iloc[-1]))}"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "cosine", "cosine", log_y=False),
        table=frame,
    )


def angular_distance(tables: Tables) -> Chart:
    """Draw the angle between the states before and after every block."""
    frame = tables.tokens().dropna(subset=["angular_distance"])
    key, title = "angular-distance", "How far each block turns the stream"
    reading = (
        "Angle between a token's state before and after a block, over π: 0 is no change, 0.5 a right angle. A block near 0 is "
        "idle: the stream passes it as if it were not there."
    )
    if not len(frame):
        return Chart(key, title, reading, absent=_NO_TOKENS)
    last = frame[frame["step"] == frame["step"].max()].reset_index(drop=True)
    row = last.iloc[int(last["angular_distance"].to_numpy().argmin())]
    title = f"Block {int(row['block'])} turns the stream least: by {number(float(row['angular_distance']))} π"
    return Chart(
        key,
        title,
        reading,
        profile(tables, frame, "angular_distance", "angle / π", log_y=False),
        table=frame,
    )


def expert_loads(tables: Tables) -> Chart:
    """Draw the largest load over the experts of every mixture, against an even one."""
    grouped = tables.busiest_experts()
    key, title = "expert-loads", "Load of the busiest expert of every block"
    reading = "Share of all choices that went to the busiest expert, times the number of experts: 1 is an even load."
    if not len(grouped):
        return Chart(
            key, title, reading, absent="No branch of this model routes tokens to experts, as far as could be seen."
        )
    last = grouped[grouped["step"] == grouped["step"].max()]
    title = f"The busiest expert takes {number(float(last['excess'].max()))} times an even load"
    return Chart(key, title, reading, heatmap(grouped, "excess", "times even", by="block", log=False), table=last)
