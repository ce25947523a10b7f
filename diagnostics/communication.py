"""Compute what each block would send between devices, from the anatomy and the batch that was recorded; nothing is measured here.

Tensor parallelism splits the matrices of a branch, so that every add needs the sum over devices of what the branch writes: one
all-reduce forward, and one backward of the gradient of what it reads (Shoeybi et al. 2019, Megatron-LM, section 3). A parallel
block adds once, a serial one twice. A ring all-reduce over t devices sends 2 (t - 1) / t times its payload from each. Sequence
parallelism splits it into a reduce-scatter and an all-gather of the same volume. A pipeline sends the state between two blocks
forward, and its gradient backward.
"""

from __future__ import annotations

import pandas as pd

from .tables import Tables

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
DEVICES = 8  # one node, the usual extent of tensor parallelism
COLUMNS = ["stack", "blocks", "adds", "elements", "all_reduced", "sent_by_each", "between_blocks"]


def communication(tables: Tables) -> pd.DataFrame:
    """Return one row a run of like blocks: stack, blocks, adds, elements, and bytes a block and micro-batch.

    ``elements`` of one write (batch x position x width) in the last sampled step; ``all_reduced``: payload of all all-reduces of
    the block, forward and backward; ``sent_by_each``: of 8 devices in a ring; ``between_blocks``: over a pipeline's cut
    behind the block, forward and backward. At the width of the model's parameters. Not counted: what a mixture of
    experts exchanges, activations that are recomputed, gradients of data parallelism. Empty where the sizes, or the type, are
    not recorded.
    """
    size = bytes_of(tables)
    rows = tables.activations
    rows = rows[(rows["site"] == "state") & (rows["direction"] == "forward")]
    rows = rows[rows["step"] == rows["step"].max()].dropna(subset=["n"])
    found: list[list[object]] = []
    for stack in tables.anatomy.stacks:
        mine = rows.loc[rows["stack"] == stack.index, "n"]
        if not len(mine) or size is None:
            continue
        state = int(mine.max())
        write = state // max(1, stack.n_streams)
        adds = pd.Series([branch.block for branch in stack.branches if branch.parameters or branch.projections])
        counts = adds.value_counts().reindex(range(stack.n_blocks), fill_value=0)
        runs = (counts != counts.shift()).cumsum()
        for _, run in counts.groupby(runs):
            first, last, n = int(run.index[0]), int(run.index[-1]), int(run.iloc[0])
            payload = 2 * n * write * size
            sent = payload * 2 * (DEVICES - 1) // DEVICES
            names = f"{first}" if first == last else f"{first} to {last}"
            found.append([stack.index, names, n, write, payload, sent, 2 * state * size])
    return pd.DataFrame(found, columns=COLUMNS)


def bytes_of(tables: Tables) -> int | None:
    """Return the bytes of one element of the model's parameters, None where their type is not recorded."""
    model = tables.recording.manifest.get("model")
    name = str(model.get("dtype", "")) if isinstance(model, dict) else ""
    return BYTES.get(name.removeprefix("torch."))
