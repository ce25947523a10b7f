"""Derive how far the tokens' gradients at a bias point the same way."""

from __future__ import annotations

import pandas as pd
from rheoscope.probes.anatomy import Anatomy

from .frames import PLACE
from .tables import Tables

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
    rows = tables.activations
    back = rows[(rows["site"] == "branch_output") & (rows["direction"] == "backward")]
    back = back.assign(energy=back["n"] * back["rms"] ** 2)
    tokens = back.groupby(["step", *PLACE], as_index=False)[["energy", "n"]].sum()
    parameters = tables.parameters
    # What several branches share has no stack.
    parameters = parameters[(parameters["gradient_state"] == "value") & (parameters["stack"] >= 0)]
    gradients = parameters[["step", "name", "n", "gradient_rms"]]
    hidden = tables.sites("hidden")
    hidden = hidden.assign(hidden=hidden["rms"] ** 2)[["step", *PLACE, "hidden"]]
    matrices = gradients.assign(weight=gradients["gradient_rms"] ** 2).rename(columns={"name": "matrix"})
    frame = (
        tokens.merge(_biases(tables.anatomy), on=["stack", "depth"])
        .merge(gradients.rename(columns={"n": "width"}), on=["step", "name"])
        .merge(matrices[["step", "matrix", "weight"]], on=["step", "matrix"], how="left")
        .merge(hidden, on=["step", *PLACE], how="left")
        .merge(_clip_coefficients(tables), on="step", how="left")
    )
    n = frame["n"] / frame["width"]
    summed = frame["width"] * (frame["gradient_rms"] / frame["coefficient"]) ** 2
    coherence = summed / frame["energy"].where(frame["energy"] > 0)
    coherence = coherence.where(coherence <= n * (1 + _ROUNDING))
    ratio = frame["hidden"] * frame["gradient_rms"] ** 2 / frame["weight"].where(frame["weight"] > 0)
    found = frame.assign(
        coherence=coherence, cosine=(coherence - 1) / (n - 1).where(n > 1), bias_weight_ratio=ratio, n_tokens=n
    )
    return found.sort_values(["step", "stack", "depth"])[COLUMNS].reset_index(drop=True)


def _biases(anatomy: Anatomy) -> pd.DataFrame:
    """Return the last bias of every branch that has one, and the matrix before it."""
    found = [
        (b.stack, b.depth, b.output_bias, next((p.weight for p in b.projections if p.bias == b.output_bias), ""))
        for b in anatomy.branches
        if b.output_bias is not None
    ]
    frame = pd.DataFrame(found, columns=["stack", "depth", "name", "matrix"])
    return frame.astype({"stack": "int64", "depth": "int64", "name": object, "matrix": object})


def _clip_coefficients(tables: Tables) -> pd.DataFrame:
    """Return step, coefficient: by what the whole gradient was multiplied, NaN where not all of it was by one number."""
    steps = tables.steps
    found = steps["clip_coefficient"].astype(float)
    before, after = steps["unclipped_gradient_norm"].astype(float), steps["gradient_norm"].astype(float)
    is_uniform = (after - found * before).abs() <= _UNIFORM * after
    is_clipped = found.notna() & (found != 1)
    return steps[["step"]].assign(coefficient=found.where(is_uniform & (found > 0)).where(is_clipped, 1.0))
