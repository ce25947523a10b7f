"""Derive how far the tokens' gradients at a bias point the same way."""

from __future__ import annotations

import numpy as np
import pandas as pd

from .tables import PLACE, Tables

COLUMNS = ["step", *PLACE, "coherence", "cosine", "bias_weight_ratio", "n_tokens"]
_UNIFORM = 1e-3  # relative: how well clipping by one coefficient must explain the norm after it
_ROUNDING = 1e-3  # relative: by how much float32 sums may exceed the Cauchy-Schwarz bound


def bias_coherence(tables: Tables) -> pd.DataFrame:
    """Return, for the bias that ends each branch, how much its gradient exceeds what tokens at random would give.

    With g_t the gradient at the branch's output for token t, over all n tokens of the step's micro-batches, the bias's
    gradient is the sum of g_t:

    - ``coherence`` = |sum g_t|^2 / sum |g_t|^2: 1 where directions are random, n where all tokens agree.
    - ``cosine`` = (coherence - 1) / (n - 1): the mean over pairs of tokens, weighted with their sizes.
    - ``bias_weight_ratio`` = E[x^2] rms(db)^2 / rms(dW)^2, x the hidden layer that W reads: 1 where directions are random, and
      (1 + (n - 1) cosine) / (1 + (n - 1) cosine x cosine of the x), about ``coherence``, where those of x are. Of MLPs;
      without the factor of a dropout on x.

    Clipping by one coefficient is undone. Missing where the sum is not that of these tokens alone, or cannot be told to be:
    a bias that several branches share, no gradient, gradients clipped apart, a gradient larger than its tokens can give (left
    over from an earlier step). Not right where a loop divides gradients itself or clips them by value, or where ranks average
    them.

    Args:
        tables: of a recording of format 3 or later.
    """
    branches = [branch for branch in tables.anatomy.branches if branch.output_bias is not None]
    parameters = tables.parameters
    parameters = parameters[parameters["gradient_state"].isin(["value"]) & (parameters["stack"] >= 0)]
    by_name = {str(name): rows.set_index("step") for name, rows in parameters.groupby("name")}
    rows = tables.activations
    back = rows[(rows["site"] == "branch_output") & (rows["direction"] == "backward")]
    totals = back.assign(energy=back["n"] * back["rms"] ** 2).groupby(["stack", "depth", "step"])[["energy", "n"]].sum()
    hidden = tables.sites("hidden").set_index(["stack", "depth", "step"])["rms"] ** 2
    clipped = _clip_coefficient(tables)
    frames = [pd.DataFrame(columns=COLUMNS)]
    for branch in branches:
        place = (branch.stack, branch.depth)
        bias = by_name.get(str(branch.output_bias))
        if bias is None or place not in totals.index.droplevel("step"):
            continue
        tokens = totals.loc[place]
        width = float(bias["n"].iloc[0])
        n = tokens["n"] / width
        energy = (width * bias["gradient_rms"] ** 2 / clipped**2).reindex(tokens.index)
        coherence = (energy / tokens["energy"].where(tokens["energy"] > 0)).where(n > 0)
        coherence = coherence.where(coherence <= n * (1 + _ROUNDING))
        matrix = next((p.weight for p in branch.projections if p.bias == branch.output_bias), "")
        frame = pd.DataFrame({"coherence": coherence, "cosine": (coherence - 1) / (n - 1).where(n > 1), "n_tokens": n})
        frame["bias_weight_ratio"] = _ratio(bias, by_name.get(matrix), hidden, place).reindex(tokens.index)
        names = {"stack": branch.stack, "depth": branch.depth, "block": branch.block, "branch": branch.kind}
        frames.append(frame.rename_axis("step").reset_index().assign(**names)[COLUMNS])
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _ratio(bias: pd.DataFrame, matrix: pd.DataFrame | None, hidden: pd.Series, place: tuple[int, int]) -> pd.Series:
    if matrix is None or place not in hidden.index.droplevel("step"):
        return pd.Series(dtype=float)
    weight = matrix["gradient_rms"] ** 2
    ratio: pd.Series = hidden.loc[place] * bias["gradient_rms"] ** 2 / weight.where(weight > 0)
    return ratio


def _clip_coefficient(tables: Tables) -> pd.Series:
    """Return by what the whole gradient was multiplied at each step: 1 unclipped, NaN where not all of it was by one number."""
    steps = tables.steps.set_index("step")
    coefficient = steps["clip_coefficient"].astype(float)
    before, after = steps["unclipped_gradient_norm"].astype(float), steps["gradient_norm"].astype(float)
    is_uniform = (after - coefficient * before).abs() <= _UNIFORM * after
    known = coefficient.where(is_uniform & (coefficient > 0))
    return known.where(coefficient.notna() & (coefficient != 1), 1.0).where(np.isfinite(coefficient.fillna(1.0)))
