"""Examine one type: build, discover, ask the oracles, and sum up in one row."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from functools import partial
from typing import Any

import torch
from rheoscope.probes.anatomy import LEDGER_TOLERANCE, Anatomy, Point
from rheoscope.probes.discovery import discover
from rheoscope.probes.errors import DiscoveryError
from rheoscope.probes.hooked import Hooked
from torch import Tensor, nn

from .build import NotBuiltError, Specimen, specimen
from .known import KNOWN
from .oracle import Verdict, hidden_states, judge

Row = dict[str, Any]


def examined(model_type: str, known: Row | None = None) -> Row:
    """Return the row of ``model_type``; whatever goes wrong is part of the row.

    Args:
        model_type: a name of the auto mappings.
        known: its row of an earlier run: how it was built is tried first, and what could not be built is not tried.
    """
    if known is not None and known["outcome"] == "not built":
        return known
    row: Row = {"type": model_type, "outcome": "not built", "cause": ""}
    start = time.perf_counter()
    try:
        hint = (known.get("shrinking", ""), known.get("class", "")) if known is not None else ("", "")
        made = specimen(model_type, *hint)
    except NotBuiltError as error:
        return row | {"cause": str(error)[:600]}
    except Exception as error:
        return row | {"cause": f"{type(error).__name__}: {error!s:.300}"}
    row |= {"class": type(made.model).__name__, "shrinking": made.shrinking, "batch": list(made.batch)}
    row["is_transformer"] = _mixes_tokens(made.model)
    built = time.perf_counter()
    try:
        anatomy = discover(made.model, made.batch)
    except DiscoveryError as error:
        return row | {"outcome": "no stream", "cause": str(error)[:300], "seconds": time.perf_counter() - built}
    except Exception as error:
        where = traceback.format_exc(limit=-3)
        return row | {"outcome": "crashed", "cause": f"{type(error).__name__}: {error!s:.200}", "where": where}
    row["seconds"] = time.perf_counter() - built
    row["building"] = built - start
    return row | summed_up(made, anatomy)


def _mixes_tokens(model: nn.Module) -> bool:
    """Whether anything but convolutions mixes positions: told by the table only, from the presence of wide linears."""
    modules = [module for module in model.modules() if isinstance(module, nn.Linear)]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv1d | nn.Conv2d)]
    return len(modules) >= 4 or (bool(modules) and len(convolutions) <= len(modules)) or _has_matrices(model)


def _has_matrices(model: nn.Module) -> bool:
    return not any(isinstance(module, nn.Conv2d | nn.Conv1d) for module in model.modules())


def summed_up(made: Specimen, anatomy: Anatomy) -> Row:
    """Return what is written about an anatomy, with the oracles' verdicts."""
    verdict = judge(hidden_states(made.model, made.batch), list(states(made, anatomy).values()))
    hidden = sum(branch.write is None and not branch.terms for branch in anatomy.branches)
    hidden_sums = sum((branch.sum or branch.state) is None for branch in anatomy.branches)
    closed = [b.ledger_error is not None and b.ledger_error <= LEDGER_TOLERANCE for b in anatomy.branches]
    placement = Counter(branch.placement for branch in anatomy.branches)
    return {
        "outcome": _outcome(verdict, anatomy, all(closed)),
        "stacks": [len(stack.branches) for stack in anatomy.stacks],
        "blocks": [stack.n_blocks for stack in anatomy.stacks],
        "multi": [getattr(stack, "n_streams", 1) for stack in anatomy.stacks],
        "placement": dict(placement.most_common()),
        "norm_kind": dict(Counter(branch.norm_kind for branch in anatomy.branches).most_common()),
        "kinds": dict(Counter(branch.kind for branch in anatomy.branches).most_common()),
        "parallel": anatomy.is_parallel,
        "ledger": anatomy.ledger_error,
        "closed": sum(closed),
        "hidden_writes": hidden,
        "hidden_sums": hidden_sums,
        "complete": anatomy.is_complete,
        "oracle": "none" if not verdict.is_asked else "right" if verdict.is_right else "wrong",
        "found": verdict.found,
        "missing": verdict.missing[:8],
        "known": _known(made, anatomy),
        "problems": list(anatomy.problems)[:12],
        "n_problems": len(anatomy.problems),
    }


def _outcome(verdict: Verdict, anatomy: Anatomy, closed: bool) -> str:
    if not verdict.is_right:
        return "wrong and confident" if anatomy.is_complete else "wrong, and says incomplete"
    if anatomy.is_complete:
        return "right"
    return "right, incomplete" if not closed else "right, in doubt"


def _known(made: Specimen, anatomy: Anatomy) -> str:
    known = KNOWN.get(getattr(made.config, "model_type", ""))
    if known is None:
        return ""
    found = {branch.placement for branch in anatomy.branches}
    if known.placement == "parallel":
        return (
            "right"
            if anatomy.is_parallel and found == {"pre"}
            else f"wrong: expected parallel pre, got {sorted(found)}"
        )
    return "right" if found == {known.placement} else f"wrong: expected {known.placement}, got {sorted(found)}"


def states(made: Specimen, anatomy: Anatomy) -> dict[Point, Tensor]:
    """Return what plain hooks see at every state and sum."""
    points = {stack.start for stack in anatomy.stacks}
    points |= {point for branch in anatomy.branches for point in (branch.state, branch.sum)}
    seen: dict[Point, Tensor] = {}

    def see(point: Point, tensor: Tensor) -> None:
        seen[point] = tensor.detach().clone()

    hooks = Hooked(made.model, [point for point in points if point is not None], lambda point: partial(see, point))
    try:
        with torch.no_grad():
            made.model(**made.batch)
    finally:
        hooks.remove()
    return seen
