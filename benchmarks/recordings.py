"""Write recordings of any length and depth through the writer itself: numbers that wander and jitter, from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.host_copies import ScalarCopies
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import FORMAT, STATISTICS
from rheoscope.probes.writer import Writer

KINDS = ("attention", "mlp")
WIDTH = 256
STEPS_A_BATCH = 16  # as the probe writes them


@dataclass(frozen=True)
class Plan:
    """What is recorded: ``n_steps`` of them, one in ``every`` in full, of a pre-norm model of ``n_blocks`` blocks.

    Attributes:
        n_blocks: each with an attention and an MLP branch.
        n_steps: optimizer steps.
        every: which of them are sampled in full.
        n_heads: of every block; 0 to leave attention and tokens out.
        seed: of the numbers.
        is_whole: with the norms and hidden layers of a real run, which its page shows too.
    """

    n_blocks: int
    n_steps: int
    every: int = 1
    n_heads: int = 4
    seed: int = 0
    is_whole: bool = False


def write(plan: Plan, folder: Path) -> Recording:
    """Write a recording and close it."""
    written(plan, folder).close()
    return Recording.load(folder)


def written(plan: Plan, folder: Path) -> Writer:
    """Return the open writer of a recording: what a run leaves that is killed before it closes."""
    rng = np.random.default_rng(plan.seed)
    writer = Writer(folder, _head(plan), resume=False, strict=True)
    writer.know(_anatomy(plan), [])
    tables = list(_tables(plan))
    sampled = np.arange(0, plan.n_steps, plan.every)
    for steps in np.split(sampled, range(STEPS_A_BATCH, len(sampled), STEPS_A_BATCH)):
        for table in tables:
            writer.columns(table.name, table.at(steps, plan.n_steps, rng))
    for step in range(plan.n_steps):
        loss = 7.0 * (step + 1) ** -0.1 + 0.02 * rng.standard_normal()
        row = {
            "step": step,
            "loss": loss,
            "lr": 3e-4,
            "n_tokens": 4_096,
            "seconds": 0.1,
            "gradient_norm": 1 + 0.1 * loss,
        }
        writer.add_step({**row, "is_sampled": step % plan.every == 0}, ScalarCopies({}))
    writer.flush()
    return writer


@dataclass(frozen=True)
class _Wandering:
    """One table: what is the same at every sampled step, and the level around which each statistic wanders.

    Attributes:
        name: of the table.
        places: column -> one value a row of a step.
        levels: statistic -> its level, one value a row.
    """

    name: str
    places: dict[str, Any]
    levels: dict[str, np.ndarray]

    def at(self, steps: np.ndarray, n_steps: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return the columns of several steps."""
        n = len(next(iter(self.places.values())))
        columns: dict[str, Any] = {
            column: pa.concat_arrays([pa.array(values)] * len(steps)) for column, values in self.places.items()
        }
        columns["step"] = np.repeat(steps, n)
        drift = 1 + 0.3 * np.sin(3 * steps / n_steps)[:, None]
        for column, level in self.levels.items():
            noise = np.exp(0.05 * rng.standard_normal((len(steps), n), dtype=np.float32))
            columns[column] = (level * drift * noise).astype(np.float32).astype(np.float64).reshape(-1)
        return columns


def _tables(plan: Plan) -> Iterator[_Wandering]:
    adds = [(block, kind, 2 * block + index + 1) for block in range(plan.n_blocks) for index, kind in enumerate(KINDS)]
    rows = [(-1, "embedding", 0, "state", side) for side in ("forward", "backward")]
    for block, kind, depth in adds:
        for site in ("state", "write", "branch_output", "branch_input"):
            rows += [(block, kind, depth, site, side) for side in ("forward", "backward")]
        rows.append((block, kind, depth, "bias", "forward"))
        if plan.is_whole and kind == "mlp":
            rows += [(block, kind, depth, "hidden", side) for side in ("forward", "backward")]
    blocks, kinds, depths, sites, sides = (list(values) for values in zip(*rows, strict=True))
    places = _places(blocks, kinds, depths) | {
        "site": sites,
        "direction": sides,
        "call": [0] * len(rows),
        "module_path": [f"transformer.h.{block}.{kind}.{site}" for block, kind, _, site, _ in rows],
        "nonfinite": [0.0] * len(rows),
    }
    forward = np.array([side == "forward" for side in sides])
    size = np.where(forward, np.sqrt(1.0 + np.array(depths)), 1e-3) * np.where(np.array(sites) == "bias", 0.05, 1.0)
    levels = {name: size * (0.1 + index) for index, name in enumerate(STATISTICS) if name != "nonfinite"}
    if plan.is_whole:
        places["n"] = [4_096 * WIDTH] * len(rows)
        levels["mean_share"] = np.full(len(rows), 0.01)
    yield _Wandering("activations", places, levels)
    one = np.ones(len(adds))
    here = _places(*(list(values) for values in zip(*adds, strict=True)))
    paths = {"skip_gain": [1.0] * len(adds)}
    yield _Wandering(
        "gradient_paths", here | paths, {"skip_rms": 1e-3 * one, "branch_rms": 2e-4 * one, "cosine": 0.1 * one}
    )
    yield _parameters(plan)
    if plan.n_heads:
        heads = [
            (block, "attention", 2 * block + 1, head) for block in range(plan.n_blocks) for head in range(plan.n_heads)
        ]
        *where, numbers = (list(values) for values in zip(*heads, strict=True))
        shares = np.ones(len(heads))
        values = {
            "logit_max": 8 * shares,
            "logit_std": shares,
            "entropy_ratio": 0.6 * shares,
            "sink_share": 0.2 * shares,
        }
        fixed = {"head": numbers, "call": [0] * len(heads), "micro_step": [0] * len(heads)}
        yield _Wandering("attention", _places(*where) | fixed, values)
        yield _Wandering("tokens", here, {"cosine": 0.3 * one, "angular_distance": 0.05 * one})


def _parameters(plan: Plan) -> _Wandering:
    names = [
        (block, kind, f"h.{block}.{kind}.{part}.{role}", role)
        for block in range(plan.n_blocks)
        for kind in KINDS
        for part in ("in", "out")
        for role in ("weight", "bias")
    ]
    if plan.is_whole:
        names += [
            (block, kind, f"h.{block}.{kind}.norm.{name}", role)
            for block in range(plan.n_blocks)
            for kind in KINDS
            for name, role in (("weight", "gain"), ("bias", "norm_bias"))
        ]
    blocks, kinds, paths, roles = (list(values) for values in zip(*names, strict=True))
    places = {"stack": [0] * len(names), "block": blocks, "branch": kinds, "name": paths, "role": roles}
    places |= {"n": [65_536] * len(names), "gradient_state": ["value"] * len(names)}
    one = np.ones(len(names))
    sizes = {
        "weight_rms": 0.02,
        "gradient_rms": 1e-3,
        "gradient_absmax": 1e-2,
        "update_rms": 2e-5,
        "update_ratio": 1e-3,
    }
    sizes |= {"staleness": 0.7, "second_moment_rms": 1e-3, "below_epsilon_share": 1e-3}
    return _Wandering("parameters", places, {column: level * one for column, level in sizes.items()})


def _places(blocks: Sequence[int], kinds: Sequence[str], depths: Sequence[int]) -> dict[str, Any]:
    n = len(blocks)
    return {
        "micro_step": [0] * n,
        "stack": [0] * n,
        "block": list(blocks),
        "branch": list(kinds),
        "depth": list(depths),
    }


def _head(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "label": f"{plan.n_blocks} blocks, {plan.n_steps} steps",
        "created": "2026-01-01T00:00:00+00:00",
        "status": "open",
        "versions": {},
        "model": {"class_name": "Made", "n_parameters": 0, "dtype": "float32", "device": "cpu"},
        "schedule": {"every": plan.every},
        "gradients": "of the loss",
        "not_measured": [],
    }


def _anatomy(plan: Plan) -> Anatomy:
    branches = tuple(
        Branch(
            stack=0,
            block=block,
            depth=2 * block + index + 1,
            kind=kind,
            placement="pre",
            norm_kind="layernorm",
            module_path=f"transformer.h.{block}.{kind}",
            output_bias=f"h.{block}.{kind}.out.bias",
            ledger_error=0.0,
            input_norms=(f"h.{block}.{kind}.norm",) if plan.is_whole else (),
            direct_norms=("input",) if plan.is_whole else (),
        )
        for block in range(plan.n_blocks)
        for index, kind in enumerate(KINDS)
    )
    return Anatomy((Stack(0, branches, width=WIDTH),))
