"""Set the coherence of bias gradients against the number of tokens in a batch, with what a smaller batch predicts."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

COLUMNS = ["label", "cell", "n_tokens", "coherence", "lowest", "highest", "cosine", "predicted"]


def coherence_growth(frames: Mapping[str, pd.DataFrame], cells: Mapping[str, str]) -> pd.DataFrame:
    """Return one row a label: its cell, n_tokens, coherence (mean over biases), lowest, highest, cosine, predicted.

    With c the mean cosine between two tokens' gradients, n tokens have coherence 1 + (n - 1) c: 1 where directions are random,
    n where all agree. ``predicted`` takes c from the smallest batch of the same cell; missing there itself, where the law is
    the definition and nothing is tested.

    Args:
        frames: label -> ``bias_coherence`` of one recording; its first step is taken.
        cells: label -> what labels of one design share.
    """
    rows = []
    for label, frame in frames.items():
        known = frame.dropna(subset=["coherence", "cosine"])
        first = known[known["step"] == known["step"].min()]
        if len(first):
            n, cosine, values = float(first["n_tokens"].iloc[0]), float(first["cosine"].mean()), first["coherence"]
            rows.append((label, cells[label], n, values.mean(), values.min(), values.max(), cosine))
    found = pd.DataFrame(rows, columns=COLUMNS[:-1])
    smallest = found.sort_values("n_tokens", kind="stable").groupby("cell")[["n_tokens", "cosine"]].first()
    least, expected = found["cell"].map(smallest["n_tokens"]), found["cell"].map(smallest["cosine"])
    predicted = (1 + (found["n_tokens"] - 1) * expected).where(found["n_tokens"] > least)
    return found.assign(predicted=predicted)[COLUMNS]
