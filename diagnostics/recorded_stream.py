"""Read from a recording what the closed forms start from: the anatomy's branches and the measured scales of their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import pandas as pd
from rheoscope.probes.anatomy import Branch, Stack

from .once import once
from .recorded_attention import NoTheoryError, are_alike, sequences, unit_logits, value_index
from .soft_attention import Attention
from .tables import Tables
from .theory import PLACEMENTS, Add, Mlp, Stream, hidden_rms
from .thresholds import HIDDEN_ALIKE

_ACTIVATIONS = {name: name for name in ("relu", "gelu", "silu", "sigmoid", "tanh")} | {"glu": "sigmoid"}
_TELLS_EPS = 0.9998  # share of a norm's unit energy from which its epsilon is beside the rounding
_MOST_EPS = 1e-3  # no norm in use has a larger one; beyond it something scales what the norm gives


@dataclass(frozen=True)
class Scales:
    """A recording's numbers at one step of one stack, by name and place.

    Attributes:
        tables: of the recording.
        stack: the stack.
        step: the step.
        parameters: rows of the parameters, by name.
    """

    tables: Tables
    stack: Stack
    step: int
    parameters: pd.DataFrame

    def rms(self, name: str) -> float:
        """Return the RMS of a parameter."""
        if name not in self.parameters.index or not math.isfinite(value := float(self.parameters["weight_rms"][name])):
            raise NoTheoryError(f"the scale of {name} was not recorded")
        return value

    def size(self, name: str) -> int:
        """Return the number of elements of a parameter."""
        return int(self.parameters["n"][name])

    def bias_energy(self, name: str | None) -> float:
        """Return the mean square of a bias, 0 without one."""
        return 0.0 if name is None else self.rms(name) ** 2

    @cached_property
    def _sites(self) -> dict[tuple[str, int], float]:
        rows = self.tables.every_site
        is_own = (rows["step"] == self.step) & (rows["stack"] == self.stack.index) & (rows["direction"] == "forward")
        rows = rows[is_own].dropna(subset=["rms"])
        places = zip(rows["site"], rows["depth"].astype(int), strict=True)
        return dict(zip(places, rows["rms"].astype(float), strict=True))

    def site(self, site: str, depth: int) -> float | None:
        """Return the RMS of a site of the forward, None where it was not recorded."""
        return self._sites.get((site, depth))

    def gain(self, paths: tuple[str, ...]) -> float:
        """Return the RMS of a norm's gain, 1 where it has none or stores it less 1."""
        names = [
            name
            for name in self.tables.anatomy.gains
            if any(name.startswith(f"{path}.") or name == path for path in paths)
        ]
        return (self.rms(names[0]) or 1.0) if names else 1.0


def recorded_stream(scales: Scales, n: int) -> Stream:
    """Return what the prediction of one stack starts from, but for the head.

    Args:
        scales: of the stack.
        n: tokens in a micro-batch.

    Raises:
        NoTheoryError: the stack is not one that the closed forms know.
    """
    stack = scales.stack
    _check(scales)
    if stack.is_causal is None:
        raise NoTheoryError("it is not known whether attention is causal")
    energy = scales.site("state", 0)
    if not energy:
        raise NoTheoryError("state 0 was not recorded")
    tokens = scales.tables.tokens()
    first = tokens[(tokens["step"] == scales.step) & (tokens["stack"] == stack.index) & (tokens["depth"] == 0)]
    long = sequences(scales.tables, stack.index, scales.step, n, is_causal=stack.is_causal)
    eps = _norm_eps(scales)
    cosine = float(first["cosine"].iloc[0]) if len(first) else 0.0
    adds = tuple(_add(scales, branch, eps) for branch in stack.branches)
    return Stream(adds, long.n_tokens, energy**2, cosine, eps, stack.is_causal)


def _check(scales: Scales) -> None:
    stack = scales.stack
    if stack.n_streams > 1:
        raise NoTheoryError("several streams run side by side")
    weights = [projection.weight for branch in stack.branches for projection in branch.projections]
    if len(set(weights)) < len(weights):
        raise NoTheoryError("blocks share their weights, which are then not independent")
    for branch in stack.branches:
        where = f"the {branch.kind} branch of block {branch.block}"
        if branch.kind not in ("attention", "mlp", "parallel"):
            raise NoTheoryError(f"no closed form is known for a branch of the kind {branch.kind}")
        if branch.placement not in PLACEMENTS:
            raise NoTheoryError(f"the norm placement of {where} is {branch.placement}")
        if branch.is_gated_skip:
            raise NoTheoryError(f"the skip of {where} is gated by the batch")
        if branch.is_parallel and branch.kind != "parallel":
            raise NoTheoryError(f"the parallel branches of block {branch.block} are added one after the other")
        _check_parameters(scales, branch, where)


def _check_parameters(scales: Scales, branch: Branch, where: str) -> None:
    """Refuse a branch with parameters whose effect is not followed."""
    anatomy = scales.tables.anatomy
    known = {p.weight for p in branch.projections} | {p.bias for p in branch.projections if p.bias}
    others = [name for name in branch.parameters if name not in {*known, *anatomy.gains, *anatomy.norm_biases}]
    has_factor = branch.placement in ("pre", "post", "none") and scales.site("branch_output", branch.depth) is not None
    heads = branch.attention
    for name in others:
        size = scales.size(name) if name in scales.parameters.index else 0
        is_factor = has_factor and size in (1, scales.stack.width)
        is_qk = heads is not None and heads.qk_norm in ("layernorm", "rmsnorm") and heads.head_size is not None
        if not is_factor and not (is_qk and heads and size in (heads.head_size, scales.stack.width)):
            raise NoTheoryError(f"{where} has a parameter of unknown effect, {name}")


def _norm_eps(scales: Scales) -> float:
    """Return what the norms add to the mean square: the least of what they tell, as far as they tell it."""
    found = []
    for branch in scales.stack.branches:
        pairs = {
            "pre": ("state", branch.depth - 1, "branch_input", branch.input_norms),
            "double": ("state", branch.depth - 1, "branch_input", branch.input_norms),
            "reordered": ("branch_output", branch.depth, "write", branch.output_norms),
            "post": ("sum", branch.depth, "state", branch.skip_norms),
        }
        if branch.placement in pairs:
            read, depth, given, paths = pairs[branch.placement]
            before, after = scales.site(read, depth), scales.site(given, branch.depth)
            if before and after and (share := (after / scales.gain(paths)) ** 2) < _TELLS_EPS:
                # Tokens of unlike size, as a causal first block makes them, and other factors make it look larger.
                found.append(before**2 * (1 / share - 1))
    eps = min(found, default=0.0)
    return 10.0 ** round(math.log10(eps)) if 0 < eps < _MOST_EPS else 0.0  # norms are given powers of ten


def _add(scales: Scales, branch: Branch, eps: float) -> Add:
    is_in, is_out = branch.placement in ("pre", "double"), branch.placement in ("double", "reordered")
    below = scales.site("state", branch.depth - 1)
    given = scales.site("branch_input", branch.depth)
    if is_in and (below is None or given is None):
        raise NoTheoryError(f"what the {branch.kind} branch of block {branch.block} reads was not recorded")
    # What the norm gives beside what its epsilon leaves: its gain, and whatever multiplies its output.
    input_scale = given / math.sqrt(below**2 / (below**2 + eps)) if is_in and given and below else 1.0
    return Add(
        branches=_branches(scales, branch, (given if is_in else below) or 1.0),
        placement=branch.placement,
        skip_scale=branch.scale,
        input_scale=input_scale,
        write_scale=scales.gain(branch.output_norms) if is_out else _factor(scales, branch),
        stream_scale=scales.gain(branch.skip_norms),
    )


def _factor(scales: Scales, branch: Branch) -> float:
    """Return by what a branch's output is multiplied before it is added."""
    output, write = scales.site("branch_output", branch.depth), scales.site("write", branch.depth)
    if output and write is not None:
        return write / output
    factors = set(branch.factors)
    if len(factors) > 1 or None in factors:
        raise NoTheoryError(f"what multiplies the write of block {branch.block} is not known")
    return next((factor for factor in factors if factor is not None), 1.0)


def _branches(scales: Scales, branch: Branch, read_rms: float) -> tuple[Attention | Mlp, ...]:
    weights = [(p.weight, p.bias) for p in branch.projections]
    if branch.kind == "attention":
        return (_attention(scales, branch, weights, read_rms),)
    if branch.kind == "mlp":
        return (_mlp(scales, branch, weights, read_rms),)
    hidden = branch.hidden
    if hidden is None or hidden.width is None:
        raise NoTheoryError(f"the MLP of the parallel block {branch.block} was not told from its attention")
    sizes = {k * hidden.width * scales.stack.width for k in (1, 2)}
    inside = [pair for pair in weights if pair[0] in scales.parameters.index and scales.size(pair[0]) in sizes]
    others = [pair for pair in weights if pair not in inside]
    if len(inside) > 3:
        raise NoTheoryError(f"the MLP of the parallel block {branch.block} was not told from its attention")
    return _attention(scales, branch, others, read_rms), _mlp(scales, branch, inside, read_rms)


def _attention(scales: Scales, branch: Branch, weights: list[tuple[str, str | None]], read_rms: float) -> Attention:
    found, width, where = branch.attention, scales.stack.width, f"block {branch.block}"
    if found is None or found.head_size is None or found.qk_norm not in ("none", "layernorm", "rmsnorm"):
        raise NoTheoryError(f"the heads of the attention in {where} are not known")
    if not 2 <= len(weights) <= 4:
        raise NoTheoryError(f"the attention in {where} has {len(weights)} projections; 2 to 4 are known")
    *inputs, (out, out_bias) = weights
    stds, smallest = [scales.rms(name) for name, _ in inputs], min(scales.size(name) for name, _ in inputs)
    place = (scales.tables, branch, scales.step)
    if found.qk_norm == "none":
        per_product = _slope(scales, branch, found.head_size) * math.sqrt(found.head_size) * width
        if len(stds) < 3 and not are_alike(stds, smallest):
            raise NoTheoryError(f"queries, keys and values in {where} have different scales, and are not told apart")
        index = 0 if len(stds) < 3 else value_index(*place, stds, smallest, per_product, read_rms)
        product = math.prod(stds) / stds[index] if len(stds) == 3 else stds[0] ** 2
        # What else scales or bounds logits, as a soft cap does, shows in those that were recorded.
        logits_std, seen = per_product * product, unit_logits(*place) / read_rms**2
        logits_std = logits_std if seen / 2 < logits_std < 2 * seen else seen
    else:
        index, logits_std = len(stds) - 1, unit_logits(*place)
    heads = scales.size(out) / width
    gain = width * stds[index] ** 2 * heads * scales.rms(out) ** 2
    value_bias = inputs[min(index, len(inputs) - 1)][1]
    bias_energy = scales.bias_energy(out_bias) + heads * scales.rms(out) ** 2 * scales.bias_energy(value_bias)
    return Attention(gain, logits_std, found.qk_norm != "none", bias_energy)


def _slope(scales: Scales, branch: Branch, head_size: int) -> float:
    """Return by what the product of query and key is multiplied: as a check-up found it, or 1 / sqrt(head size)."""
    usual: float = head_size**-0.5
    return _slopes(scales.tables).get((branch.stack, branch.depth), usual)


@once
def _slopes(tables: Tables) -> dict[tuple[int, int], float]:
    rows = tables.identities
    rows = rows[rows["check"] == "logit_scale"].dropna(subset=["stack", "depth", "observed"])[::-1]
    places = zip(rows["stack"].astype(int), rows["depth"].astype(int), strict=True)
    return dict(zip(places, rows["observed"].astype(float), strict=True))  # the first of several


def _mlp(scales: Scales, branch: Branch, weights: list[tuple[str, str | None]], read_rms: float) -> Mlp:
    hidden, width, where = branch.hidden, scales.stack.width, f"the MLP in block {branch.block}"
    if hidden is None or hidden.width is None or hidden.activation not in _ACTIVATIONS:
        name = "unknown" if hidden is None else hidden.activation
        raise NoTheoryError(f"the activation of {where} is {name}, which has no closed form here")
    *inputs, (last, last_bias) = weights
    if not 1 <= len(inputs) <= 2 or (len(inputs) == 2 and not hidden.is_gated):
        raise NoTheoryError(f"{where} has {len(weights)} projections; 2, or 3 with a gate, are known")
    stds = [scales.rms(name) for name, _ in inputs]
    if not are_alike(stds, min(scales.size(name) for name, _ in inputs)):
        raise NoTheoryError(f"the two first projections of {where} have different scales, and are not told apart")
    gain = width * stds[0] * stds[-1]
    mlp = Mlp(
        input_gain=gain,
        output_gain=scales.size(last) / width * scales.rms(last) ** 2,
        activation=_ACTIVATIONS[hidden.activation],
        gate_gain=gain if hidden.is_gated else None,
        input_bias_energy=scales.bias_energy(inputs[0][1]),
        bias_energy=scales.bias_energy(last_bias),
    )
    seen = scales.site("hidden", branch.depth)
    # The square of ReLU is ReLU and a product to discovery: what the hidden layer holds tells the two apart.
    for one in (mlp, replace(mlp, activation="relu_squared")) if mlp.activation == "relu" else (mlp,):
        if seen is None or abs(math.log(max(seen, 1e-30) / hidden_rms(one, read_rms))) < math.log(
            HIDDEN_ALIKE + 1 / math.sqrt(width)
        ):
            return one
    raise NoTheoryError(f"the hidden layer of {where} is not what its weights and its activation make of its input")
