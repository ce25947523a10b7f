"""Recordings made by hand: a healthy stack whose numbers are known, to be spoilt one quantity at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.recording import Recording

Profile = Callable[[int], float]


@dataclass
class Made:
    """The parts of a recording before they are put together; a test may edit the frames."""

    anatomy: Anatomy
    tables: dict[str, pd.DataFrame]
    manifest: dict[str, Any] = field(default_factory=dict)

    def recording(self) -> Recording:
        """Return the recording."""
        return Recording.from_tables(self.manifest, self.anatomy, self.tables)

    def set(self, table: str, column: str, value: object, **where: object) -> Made:
        """Write ``value`` into the rows of ``table`` whose columns have the values of ``where``; return this."""
        frame = self.tables[table]
        chosen = pd.Series(True, index=frame.index)
        for name, wanted in where.items():
            chosen &= frame[name] == wanted
        assert chosen.any(), f"no row of {table} has {where}"
        frame.loc[chosen, column] = value
        return self


Maker = Callable[..., Made]


@pytest.fixture
def made() -> Maker:
    """Return the maker of recordings: ``made(n_blocks=..., gradient=lambda depth: ..., ...)``."""
    return make


def make(
    n_blocks: int = 6,
    *,
    placement: str = "pre",
    steps: Sequence[int] = (0,),
    n_stacks: int = 1,
    state: Profile = lambda depth: (1 + depth) ** 0.5,
    gradient: Profile | None = lambda depth: 1e-3,
    skip_gain: float = 1.0,
    bias: Profile | None = None,
    update: Profile | None = None,
    losses: Sequence[float] | None = None,
) -> Made:
    """Return stacks of ``n_blocks`` blocks, an attention and an MLP branch each.

    Args:
        n_blocks: blocks of each stack.
        placement: of every branch.
        steps: sampled steps.
        n_stacks: how many stacks.
        state: RMS of the state of a depth.
        gradient: gradient RMS at the state of a depth; None without a backward.
        skip_gain: of every add.
        bias: RMS of the output bias of the branch at a depth, whose output has RMS 1; None without biases.
        update: update RMS over weight RMS in a block; None without an optimizer.
        losses: of the steps.
    """
    stacks = tuple(_stack(index, n_blocks, placement, has_bias=bias is not None) for index in range(n_stacks))
    activations: list[dict[str, Any]] = []
    paths: list[dict[str, Any]] = []
    parameters: list[dict[str, Any]] = []
    for step in steps:
        for stack in stacks:
            start = {"step": step, "stack": stack.index, "block": -1, "branch": "embedding", "depth": 0}
            activations += _states(start, state, gradient)
            for branch in stack.branches:
                place = {
                    "step": step,
                    "stack": branch.stack,
                    "block": branch.block,
                    "branch": branch.kind,
                    "depth": branch.depth,
                }
                activations += _states(place, state, gradient)
                for site in ("branch_input", "branch_output", "write"):
                    activations.append(_row(place, site, "forward", 1.0))
                if bias is not None:
                    activations.append(_row(place, "bias", "forward", bias(branch.depth)) | {"nonfinite": None})
                if gradient is not None:
                    paths.append(place | {"micro_step": 0, "skip_gain": skip_gain})
                parameters.append(_parameter(place, 0.0 if gradient is None else 1e-3, update))
    tables = {
        "activations": pd.DataFrame(activations),
        "gradient_paths": pd.DataFrame(paths, columns=["step", "stack", "block", "branch", "depth", "skip_gain"]),
        "parameters": pd.DataFrame(parameters),
        "steps": pd.DataFrame({"step": list(steps), "loss": losses or [1.0] * len(steps), "is_sampled": True}),
    }
    return Made(Anatomy(stacks=stacks), tables)


def _stack(index: int, n_blocks: int, placement: str, *, has_bias: bool) -> Stack:
    branches = tuple(
        Branch(
            stack=index,
            block=depth // 2,
            depth=depth + 1,
            kind=("attention", "mlp")[depth % 2],
            placement=placement,
            norm_kind="layernorm",
            output_bias=f"stack{index}.{depth}.bias" if has_bias else None,
            ledger_error=0.0,
        )
        for depth in range(2 * n_blocks)
    )
    return Stack(index, branches, width=8)


def _states(place: dict[str, Any], state: Profile, gradient: Profile | None) -> list[dict[str, Any]]:
    rows = [_row(place, "state", "forward", state(place["depth"]))]
    if gradient is not None:
        rows.append(_row(place, "state", "backward", gradient(place["depth"])))
    return rows


def _row(place: dict[str, Any], site: str, direction: str, rms: float) -> dict[str, Any]:
    path = "embedding" if place["block"] < 0 else f"blocks.{place['block']}.{place['branch']}"
    numbers = {"rms": rms, "absmax": 4 * rms, "nonfinite": 0.0}
    return place | {"micro_step": 0, "site": site, "direction": direction, "call": 0, "module_path": path} | numbers


def _parameter(place: dict[str, Any], gradient: float, update: Profile | None) -> dict[str, Any]:
    ratio = None if update is None else update(place["block"])
    return {
        "step": place["step"],
        "name": f"blocks.{place['stack']}.{place['block']}.{place['branch']}.weight",
        "stack": place["stack"],
        "block": place["block"],
        "branch": place["branch"],
        "role": "weight",
        "n": 64,
        "gradient_state": "value" if gradient else "none",
        "weight_rms": 0.5,
        "gradient_rms": gradient or None,
        "update_rms": None if ratio is None else 0.5 * ratio,
        "update_ratio": ratio,
    }
