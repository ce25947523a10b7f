"""Diagnose one branch that is made otherwise than all its siblings: its norms, its activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rheoscope.probes.anatomy import Branch, Stack

from .finding import Evidence, Finding
from .frames import records
from .siblings import apart
from .tables import Tables
from .thresholds import LEAST_SIBLINGS, RANK_APART


def odd_branches(tables: Tables) -> list[Finding]:
    """Report a branch whose norms, or whose activation, differ from those of the same branch in all other blocks."""
    found = []
    for stack in tables.anatomy.stacks:
        for code, words, trait in _TRAITS:
            for branch, value, usual, n in _odd(stack, trait):
                found.append(
                    Finding(
                        code=code,
                        severity="warning",
                        # Why nothing behaves as a norm is what other rules tell: a gain of 0, a large epsilon.
                        confidence=0.8 if code == "norm-missing" else 0.9,
                        block=branch.block,
                        component=branch.kind,
                        module_path=branch.module_path,
                        step=0,
                        sentence=f"The {words} of the {branch.kind} branch of block {branch.block} is {value}; of its {n} "
                        f"siblings it is {usual}.",
                        evidence=Evidence(f"{words} of the branch", 1.0, 0.0, f"{n} siblings share one"),
                        remedy="Look at how this block is built.",
                    )
                )
    return found


def _n_norms(branch: Branch) -> int:
    """Return how many modules behave as norms around a branch."""
    return len(branch.input_norms) + len(branch.output_norms) + len(branch.skip_norms)


def _activation(branch: Branch) -> str:
    """Return the function between the projections of a feed-forward branch."""
    known = branch.hidden.activation if branch.hidden is not None else "unknown"
    return "none that is known" if known == "unknown" else known


_TRAITS: tuple[tuple[str, str, Callable[[Branch], object]], ...] = (
    ("norm-placement-odd", "norm placement", lambda branch: branch.placement),
    ("norm-missing", "number of modules that behave as norms", _n_norms),
    ("norm-kind-odd", "kind of norm", lambda branch: branch.norm_kind),
    ("activation-odd", "activation", _activation),
)


def _odd(stack: Stack, trait: Callable[[Branch], object]) -> Iterator[tuple[Branch, object, object, int]]:
    """Yield the one branch of its kind that differs from all the others, which are alike."""
    for kind in dict.fromkeys(branch.kind for branch in stack.ordinary):
        mine = [branch for branch in stack.ordinary if branch.kind == kind]
        values = [trait(branch) for branch in mine]
        usual = max(set(values), key=values.count)
        odd = [branch for branch, value in zip(mine, values, strict=True) if value != usual]
        is_first = bool(odd) and odd[0].depth == 1 and not odd[0].input_norms and _may_do_without(stack, odd[0])
        if len(odd) == 1 and not is_first and len(mine) > LEAST_SIBLINGS and usual != "unknown":
            yield odd[0], trait(odd[0]), usual, len(mine) - 1


def shared_weights(tables: Tables) -> list[Finding]:
    """Report a branch that has another block's weights, where most blocks have their own."""
    found = []
    for stack in tables.anatomy.stacks:
        for kind in dict.fromkeys(branch.kind for branch in stack.branches):
            mine = [branch for branch in stack.branches if branch.kind == kind]
            first: dict[str, Branch] = {}
            again: dict[int, tuple[Branch, Branch, str]] = {}
            for branch in mine:
                for projection in branch.projections:
                    owner = first.setdefault(projection.weight, branch)
                    if owner.block != branch.block:
                        again.setdefault(branch.depth, (branch, owner, projection.weight))
            if len(mine) > LEAST_SIBLINGS and len(again) * 4 <= len(mine):
                found += [_shared(*item, len(mine) - len(again)) for item in again.values()]
    return found


def _shared(branch: Branch, owner: Branch, weight: str, n: int) -> Finding:
    return Finding(
        code="weight-shared",
        severity="warning",
        confidence=1.0,
        block=branch.block,
        stack=branch.stack,
        component=branch.kind,
        module_path=weight,
        step=0,
        sentence=f"The {branch.kind} branch of block {branch.block} has weights of block {owner.block} ({weight}); the {n} "
        "others have their own.",
        evidence=Evidence("blocks with these weights", 2.0, 1.0, f"{n} siblings have their own"),
        remedy="Look at how the blocks are made: one module that was put into two of them.",
    )


def low_ranks(tables: Tables) -> list[Finding]:
    """Report a weight that uses far fewer directions than the same weight of the other blocks."""
    rows = tables.identities
    rows = rows[(rows["check"] == "stable_rank") & rows["observed"].notna()]
    rows = rows.assign(nth=rows.groupby(["stack", "branch", "depth"], sort=False).cumcount())
    found = []
    for _, group in rows.groupby(["stack", "branch", "nth"], sort=False):
        for odd in apart(group["observed"].tolist(), RANK_APART):
            row = records(group)[odd.index]
            if odd.value > odd.low:
                continue  # more directions than its siblings use are none too few
            found.append(
                Finding(
                    code="weight-rank",
                    severity="warning",
                    confidence=0.9,
                    block=int(row["block"]),
                    stack=int(row["stack"]),
                    component=str(row["branch"]),
                    module_path=str(row["module_path"]),
                    step=0,
                    sentence=f"The weight {row['module_path']} uses few directions: its stable rank is {odd.value:.3g}, "
                    f"{odd.words}.",
                    evidence=Evidence("|W|_F^2 / |W|_2^2", odd.value, odd.middle, "the other blocks", RANK_APART),
                    remedy="Look at the init of this weight, and at what was loaded into it.",
                    reference="Rudelson and Vershynin 2007 (stable rank)",
                )
            )
    return found


def _may_do_without(stack: Stack, first: Branch) -> bool:
    """Return whether a first branch may need no norm of its own: the embedding ends in one, or no module shows its norm."""
    return stack.start_norms != () or first.placement in ("pre", "double") or first.kind == "mixer"
