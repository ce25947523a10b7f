"""Count the directions of biases that no loss can see: their gradient is exactly 0 by construction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Branch, Stack

from .frames import records
from .tables import Tables

COLUMNS = ["stack", "block", "branch", "bias", "size", "redundant", "measured", "why"]
KEY = "a key bias adds the same to all logits of a query, which the softmax takes away"
MEAN = "the LayerNorm that follows takes away the mean"
STREAM_MEAN = "whatever reads the stream is a LayerNorm, which takes away the mean"
_ROUNDING = 1e-4  # of its siblings' gradient: what remains of an exact 0 in float32 and bfloat16 sums lies far below
_APART = 1e-2  # of the next smallest
_UNTURNED = ("learned", "sinusoidal", "none", "alibi")  # positions that leave the keys as they are


def redundant_biases(tables: Tables) -> pd.DataFrame:
    """Return one row a bias with redundant directions: stack, block, branch, bias, size, redundant, measured, why.

    Exact laws, whatever the weights. In an attention without rotary positions and without QK-norm the bias of the keys has no
    gradient: softmax(q (k + b)) = softmax(q k). Of the last bias of a branch the mean over channels, one direction, has none
    where a LayerNorm reads it next (post-norm on the stream; a norm before the add) or where every reader of the stream is a
    LayerNorm (pre-norm with a final one): LayerNorm(x + c) = LayerNorm(x) for a number c.

    ``measured`` is the RMS of the bias's gradient over that of the branch's other biases, at the first step with gradients: by
    its 0 to rounding a separate key bias is told from those of queries and values. NaN where one bias holds redundant and other
    directions together. What the anatomy leaves open is not counted.

    Args:
        tables: of a recording with gradients of parameters.
    """
    rows = tables.parameters
    seen = rows[rows["gradient_rms"].notna()]
    first = seen[seen["step"] == seen["step"].min()].drop_duplicates("name")
    known = {
        row["name"]: (int(row["n"]), float(row["gradient_rms"]))
        for row in records(first[["name", "n", "gradient_rms"]])
    }
    has_unturned_keys = tables.anatomy.positions in _UNTURNED
    found = []
    for stack in tables.anatomy.stacks:
        is_normed = _is_read_through_layernorms(stack)
        for branch in stack.branches:
            place = {"stack": stack.index, "block": branch.block, "branch": branch.kind}
            keys = _keys(branch, known) if has_unturned_keys else ()
            found += [{**place, **row} for row in (*keys, *_means(branch, known, is_normed=is_normed))]
    return pd.DataFrame(found, columns=COLUMNS)


def summed(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return one row a law and what its biases share: ``keys``, biases, directions, of (how many), measured (the largest), why.

    Args:
        frame: as ``redundant_biases`` gives it, with the columns of ``keys``.
        keys: such as branch.
    """
    by_law = frame.groupby([*keys, "why"], sort=False, as_index=False)
    found = by_law.agg(
        biases=("bias", "size"), directions=("redundant", "sum"), of=("size", "sum"), measured=("measured", "max")
    )
    return found[[*keys, "biases", "directions", "of", "measured", "why"]]


def _keys(branch: Branch, known: Mapping[str, tuple[int, float]]) -> Iterator[dict[str, Any]]:
    attention = branch.attention
    if branch.kind != "attention" or attention is None or attention.qk_norm != "none":
        return
    if not (attention.n_heads and attention.n_key_value_heads and attention.head_size):
        return
    keys = attention.n_key_value_heads * attention.head_size
    fused = attention.n_heads * attention.head_size + 2 * keys
    names = [p.bias for p in branch.projections if p.bias in known and p.bias != branch.output_bias]
    inner = sorted((known[name][1], known[name][0], name) for name in dict.fromkeys(names) if name is not None)
    if len(inner) == 1 and inner[0][1] == fused:
        yield {"bias": inner[0][2], "size": fused, "redundant": keys, "measured": np.nan, "why": KEY}
    if len(inner) > 1 and inner[0][1] == keys and inner[1][0] > 0:
        (least, _, name), others = inner[0], np.array([gradient for gradient, _, _ in inner[1:]])
        measured = float(least / np.sqrt((others**2).mean()))
        # Logits near 0 leave the queries little gradient too: what is 0 to rounding lies far below that as well.
        if measured <= _ROUNDING and least <= _APART * others[0]:
            yield {"bias": name, "size": keys, "redundant": keys, "measured": measured, "why": KEY}


def _means(branch: Branch, known: Mapping[str, tuple[int, float]], *, is_normed: bool) -> Iterator[dict[str, Any]]:
    name = branch.output_bias
    if name is None or name not in known:
        return
    role = {"post": "stream", "double": "output", "reordered": "output"}.get(branch.placement)
    why = MEAN if role in branch.direct_norms and branch.norm_kind == "layernorm" else STREAM_MEAN if is_normed else ""
    if why:
        yield {"bias": name, "size": known[name][0], "redundant": 1, "measured": np.nan, "why": why}


def _is_read_through_layernorms(stack: Stack) -> bool:
    """Return whether every branch of the stack, and what stands behind its last state, reads it through a LayerNorm."""
    is_normed = all(
        branch.placement == "pre" and branch.norm_kind == "layernorm" and "input" in branch.direct_norms
        for branch in stack.branches
    )
    return bool(is_normed and stack.outlet is not None and stack.outlet.norm_kind == "layernorm")
