"""Derive what every norm does: how large its input is, how much of it the mean takes away, its gain on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Anatomy, Branch, Stack

from .tables import PLACE, Tables

COLUMNS = [
    "step",
    *PLACE,
    "role",
    "module_path",
    "kind",
    "input_rms",
    "mean_energy_removed",
    "jacobian_gain",
    "gain_rms",
    "bias_rms",
    "not_known",
]
_BETWEEN = "the anatomy does not tell that nothing stands between this norm and what is recorded"
_SEVERAL = "several norms read this state, and the gradient that comes back is of all of them"


@dataclass(frozen=True)
class _Norm:
    """One norm: its place, the sites at its two ends, and why its gain is not known."""

    stack: int
    depth: int
    block: int
    branch: str
    role: str
    path: str
    kind: str
    reads: tuple[str, int]
    gives: tuple[str, int]
    is_direct: bool
    not_known: str


def norms(tables: Tables) -> pd.DataFrame:
    """Return one row a norm and sampled step; the micro-batches joined as those of equal size are.

    ``role`` says where the norm stands: ``input`` (state to branch), ``output`` (branch output to write), ``stream`` (sum to
    state, post-norm) or ``final`` (last state to the head: block -1, branch output). ``kind`` is what discovery found by
    behaviour.

    - ``input_rms``: RMS of what the norm reads: it multiplies by about one over this.
    - ``mean_energy_removed``: share of its input's energy that lies in the tokens' own means, which a LayerNorm takes away;
      0 for an RMSNorm, which keeps them.
    - ``jacobian_gain``: RMS of the gradient at the norm's input over RMS of the gradient at its output, through this norm
      alone. Of an input norm the gradient at its input is the part that comes back through the branch
      (``gradient_paths.branch_rms``).
    - ``gain_rms``, ``bias_rms``: RMS of its parameters after the step, as they are stored.
    - ``not_known``: why the measured columns are null, "" where they are not.

    Args:
        tables: of a recording of format 3 or later.
    """
    found = list(_norms(tables.anatomy))
    rows = tables.activations
    if not found or not len(rows):
        return pd.DataFrame(columns=COLUMNS)
    steps = pd.Index(tables.sampled_steps, name="step")
    energy = rows["rms"] ** 2
    measured = rows.assign(energy=energy, mean=energy * rows["mean_share"])
    keys = ["site", "direction", "stack", "depth"]
    paths = tables.gradient_paths
    back = paths.assign(energy=paths["branch_rms"] ** 2, site="branch", direction="backward")
    seen = {
        "energy": _by_step(pd.concat([measured[["step", *keys, "energy"]], back[["step", *keys, "energy"]]]), keys),
        "mean": _by_step(measured[["step", *keys, "mean"]].rename(columns={"mean": "energy"}), keys),
    }
    own = _parameters(tables)
    return pd.concat([_rows(norm, steps, seen, own) for norm in found], ignore_index=True)[COLUMNS]


_Columns = dict[tuple[object, ...], pd.Series]


def _by_step(frame: pd.DataFrame, keys: list[str]) -> _Columns:
    """Return the mean of column ``energy`` over the micro-batches by step, for each value of ``keys``."""
    frame = frame.dropna(subset=["energy"])
    if not len(frame):
        return {}
    table = frame.pivot_table(index="step", columns=keys, values="energy", aggfunc="mean")
    return {tuple(key): table[key] for key in table.columns}


def _rows(norm: _Norm, steps: pd.Index, seen: dict[str, _Columns], own: _Columns) -> pd.DataFrame:
    nothing = pd.Series(np.nan, index=steps)

    def at(quantity: str, end: tuple[str, int], direction: str) -> pd.Series:
        found = seen[quantity].get((end[0], direction, norm.stack, end[1])) if norm.is_direct else None
        return nothing if found is None else found.reindex(steps)

    read = at("energy", norm.reads, "forward")
    above = at("energy", norm.gives, "backward")
    below = at("energy", ("branch", norm.depth) if norm.role == "input" else norm.reads, "backward")
    removed = at("mean", norm.reads, "forward") / read.where(read > 0)
    kept = 0.0 * read if norm.kind == "rmsnorm" else nothing
    return pd.DataFrame(
        {
            "step": steps,
            "stack": norm.stack,
            "depth": norm.depth,
            "block": norm.block,
            "branch": norm.branch,
            "role": norm.role,
            "module_path": norm.path,
            "kind": norm.kind,
            "input_rms": np.sqrt(read),
            "mean_energy_removed": removed if norm.kind == "layernorm" else kept,
            "jacobian_gain": nothing if norm.not_known else np.sqrt(below / above.where(above > 0)),
            "gain_rms": own.get((norm.path, "gain"), nothing).reindex(steps),
            "bias_rms": own.get((norm.path, "norm_bias"), nothing).reindex(steps),
            "not_known": norm.not_known,
        }
    )


def _norms(anatomy: Anatomy) -> Iterator[_Norm]:
    for stack in anatomy.stacks:
        for branch in stack.branches:
            yield from _of_branch(branch)
        yield from _final(stack)


def _of_branch(branch: Branch) -> Iterator[_Norm]:
    k = branch.depth
    places = (
        ("input", branch.input_norms, ("state", k - 1), ("branch_input", k), branch.placement in ("pre", "double")),
        (
            "output",
            branch.output_norms,
            ("branch_output", k),
            ("write", k),
            branch.placement in ("reordered", "double"),
        ),
        ("stream", branch.skip_norms, ("sum", k), ("state", k), branch.placement == "post"),
    )
    for role, paths, reads, gives, is_placed in places:
        is_direct = role in branch.direct_norms
        # A norm without a module of its own is written out in the model's code.
        for path in paths or ([""] if is_placed else []):
            is_one = role != "input" or (len(branch.inputs) == 1 and len(paths) <= 1)
            why = _BETWEEN if not is_direct else "" if is_one else _SEVERAL
            yield _Norm(
                branch.stack, k, branch.block, branch.kind, role, path, branch.norm_kind, reads, gives, is_direct, why
            )


def _final(stack: Stack) -> Iterator[_Norm]:
    outlet = stack.outlet
    if outlet is None or outlet.norm_path is None:
        return
    k = max((branch.depth for branch in stack.branches), default=0)
    ends = ("state", k), ("final_norm", k + 1)
    why = "" if outlet.is_direct else _BETWEEN
    yield _Norm(
        stack.index, k + 1, -1, "output", "final", outlet.norm_path, outlet.norm_kind, *ends, outlet.is_direct, why
    )


def _parameters(tables: Tables) -> _Columns:
    """Return the RMS of each norm's gain and bias by step; keys are the norm's path and the role."""
    rows = tables.parameters
    rows = rows[rows["role"].isin(["gain", "norm_bias"]) & rows["weight_rms"].notna()]
    paths = rows["name"].astype(str).str.rsplit(".", n=1).str[0]
    # A norm has one gain and one bias, or several parts of one, all as large.
    squares = _by_step(rows.assign(path=paths, energy=rows["weight_rms"] ** 2), ["path", "role"])
    return {key: column**0.5 for key, column in squares.items()}
