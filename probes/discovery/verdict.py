"""Bring the ledger's outcomes into the anatomy, and say in sentences what is not certain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rheoscope.probes.anatomy import LEDGER_TOLERANCE, Anatomy, Branch

from .certificate import Outcome


def certified(anatomy: Anatomy, outcomes: list[Outcome]) -> Anatomy:
    """Return the anatomy with the error of every add, and a problem for each that is not certified."""
    stacks, problems = [], list(anatomy.problems)
    trivial: list[Branch] = []
    remaining = iter(outcomes)
    for stack in anatomy.stacks:
        checked = []
        for branch in stack.branches:
            found = next(remaining)
            checked.append(replace(branch, ledger_error=found.error))
            trivial += [branch] if found.is_trivial else []
            problem = _problem(branch, found)
            if problem:
                problems.append(problem)
        stacks.append(replace(stack, branches=tuple(checked)))
    notes = (*anatomy.notes, *_note(trivial))
    return replace(anatomy, stacks=tuple(stacks), problems=tuple(problems), notes=notes)


def _note(trivial: list[Branch]) -> Iterator[str]:
    if trivial:
        first = trivial[0]
        yield (
            f"{len(trivial)} branches write 0 on this model as it stands, first the {first.kind} branch of block {first.block} "
            f"(stack {first.stack}): their adds close, which does not prove where the write is seen."
        )


def _problem(branch: Branch, found: Outcome) -> str | None:
    where = f"the {branch.kind} branch of block {branch.block} (stack {branch.stack})"
    if found.error is not None and found.error > LEDGER_TOLERANCE:
        return f"The sum behind {where} is not skip operand plus write: relative error {found.error:.2g}."
    if found.error is None:
        return f"The add of {where} is not certified: {_why(branch, found)}."
    if branch.placement == "unknown":
        return f"The norm placement of {where} is not settled by its dataflow."
    return None


def _why(branch: Branch, found: Outcome) -> str:
    if branch.is_gated_skip:
        return "its skip operand is multiplied by a gate that no module shows"
    if not found.hidden:
        return "its terms are not finite"
    derived = "; it is derived as the difference between the sums around it" if found.hidden == ("write",) else ""
    return f"no module shows its {' and its '.join(found.hidden)}{derived}"
