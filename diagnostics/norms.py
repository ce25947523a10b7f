"""Derive what every norm does: how large its input is, how much of it the mean takes away, its gain on the way back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from rheoscope.probes.anatomy import Anatomy, Branch, Stack

from .frames import PLACE

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
_END = ["site", "direction", "stack", "depth"]  # one end of a norm
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
    module_path: str
    kind: str
    reads: tuple[str, int]
    gives: tuple[str, int]
    is_direct: bool
    not_known: str

    @property
    def receives(self) -> tuple[str, int]:
        """Where the gradient at the norm's input is recorded: of an input norm what comes back through its branch."""
        return ("branch", self.depth) if self.role == "input" else self.reads


def norms(
    anatomy: Anatomy,
    steps: Sequence[int],
    activations: pd.DataFrame,
    gradient_paths: pd.DataFrame,
    parameters: pd.DataFrame,
) -> pd.DataFrame:
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
        anatomy: says where the norms stand.
        steps: the sampled ones.
        activations: that table of a recording of format 3 or later; the next two alike.
        gradient_paths: energies of the branches' gradients.
        parameters: gains and biases.
    """
    found = list(_norms(anatomy))
    if not found or not len(activations):
        return pd.DataFrame(columns=COLUMNS)
    energy = activations["rms"] ** 2
    back = gradient_paths.assign(energy=gradient_paths["branch_rms"] ** 2, site="branch", direction="backward")
    measured = activations.assign(energy=energy, mean=energy * activations["mean_share"])
    seen = pd.concat([measured, back])[["step", *_END, "energy", "mean"]].groupby(["step", *_END]).mean()
    own = _parameters(parameters)
    frame = pd.DataFrame([asdict(norm) | {"receives": norm.receives} for norm in found])
    frame = frame.merge(pd.DataFrame({"step": steps}), how="cross")

    def at(end: str, direction: str, quantity: str = "energy") -> np.ndarray:
        sites, depths = zip(*frame[end], strict=True)
        keys = pd.MultiIndex.from_arrays(
            [frame["step"], sites, [direction] * len(frame), frame["stack"], depths], names=seen.index.names
        )
        return np.where(frame["is_direct"], seen[quantity].reindex(keys).to_numpy(dtype=float), np.nan)

    def parameter(role: str) -> np.ndarray:
        keys = pd.MultiIndex.from_arrays([frame["step"], frame["module_path"], [role] * len(frame)])
        return np.asarray(own.reindex(keys), dtype=float)

    read, above = at("reads", "forward"), at("gives", "backward")
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(read > 0, at("reads", "forward", "mean") / read, np.nan)
        gain = np.where(above > 0, np.sqrt(at("receives", "backward") / above), np.nan)
    removed = np.select(
        [frame["kind"] == "layernorm", frame["kind"] == "rmsnorm"],
        [share, np.where(np.isfinite(read), 0.0, np.nan)],
        np.nan,
    )
    return frame.assign(
        input_rms=np.sqrt(read),
        mean_energy_removed=removed,
        jacobian_gain=np.where(frame["not_known"] == "", gain, np.nan),
        gain_rms=parameter("gain"),
        bias_rms=parameter("norm_bias"),
    )[COLUMNS]


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


def _parameters(rows: pd.DataFrame) -> pd.Series:
    """Return the RMS of each norm's gain and bias, by step, the norm's path and the role."""
    rows = rows[rows["role"].isin(["gain", "norm_bias"]) & rows["weight_rms"].notna()]
    paths = rows["name"].astype(str).str.rsplit(".", n=1).str[0]
    # A norm has one gain and one bias, or several parts of one, all as large.
    squares = rows.assign(path=paths, energy=rows["weight_rms"].astype(float) ** 2)
    return squares.groupby(["step", "path", "role"])["energy"].mean() ** 0.5
