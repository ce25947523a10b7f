"""Find what is added to the stream and belongs to no branch: position embeddings once more, a constant, a stray term."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy, Branch, Point
from .rounding import SHORT
from .running import place_of

TOLERANCE = 1e-4  # of the state: float32 sums close to 1e-7, a fused kernel to 1e-5
CONSTANT = (
    0.1  # of a term: what rounding and a multiple of the state other than 1 leave in it that differs between samples
)
Terms = tuple[tuple[Point, float], ...]


def shift_points(anatomy: Anatomy) -> set[Point]:
    """Return where ``shifts`` looks."""
    return {
        point for _, state, terms in (*_sums(anatomy), *_ends(anatomy)) for point in (state, *(at for at, _ in terms))
    }


def rounded(anatomy: Anatomy, seen: Mapping[Point, Tensor]) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``rounded_share`` of every branch that is added to a stream of 16 bits.

    ``observed`` is the energy of state k less ``scale * state k-1 + write k`` over that of the write: what rounding takes of it.

    Args:
        anatomy: what ``discover`` found on the model.
        seen: what one forward showed at ``shift_points``, without dropout.
    """
    rows = []
    for branch, at, terms in _sums(anatomy):
        state = seen.get(at)
        addends = [seen[point].double() * factor for point, factor in terms if point in seen]
        if state is None or state.dtype not in SHORT or len(addends) < max(2, len(terms)) or branch.skip_norms:
            continue
        if any(addend.shape != state.shape or not bool(torch.isfinite(addend).all()) for addend in addends):
            continue
        write = torch.stack(addends[1:]).sum(0)
        energy, lost = float(write.square().sum()), float((state.double() - addends[0] - write).square().sum())
        if energy > 0 and lost < float("inf"):
            note = "energy that rounding takes of a write as it is added to a stream of 16 bits, over the write's"
            rows.append({"check": "rounded_share", **place_of(branch), "observed": lost / energy, "note": note})
    return rows


def shifts(anatomy: Anatomy, seen: Mapping[Point, Tensor]) -> list[dict[str, Any]]:
    """Return rows of the identities table: ``stream_shift`` of every branch whose next state is seen with what makes it.

    ``stream_end`` holds the last state against what the final norm reads, unless the same is added whatever the sample.

    ``observed`` is the norm of what is left of state k when it is explained as a multiple of ``scale * state k-1 + write k``,
    behind a norm on the stream as a multiple of what the norm gives, over that of state k: 0 where the state that the next branch
    reads is that and nothing else. The multiple is 1 in nearly all models; RWKV halves its states every few blocks in evaluation.

    Args:
        anatomy: what ``discover`` found on the model.
        seen: what one forward showed at ``shift_points``, without dropout.
    """
    rows = []
    ends = list(_ends(anatomy))
    for branch, at, terms in (*_sums(anatomy), *ends):
        state, addends = seen.get(at), [seen.get(point) for point, _ in terms]
        if state is None or not state.is_floating_point() or not bool(torch.isfinite(state).all()):
            continue
        if any(addend is not None and not _in_one_order(addend, state) for addend in addends):
            continue
        total = torch.zeros(state.numel(), dtype=torch.float64, device=state.device)
        known = [t for t in addends if t is not None and t.numel() == state.numel() and bool(torch.isfinite(t).all())]
        if len(known) < len(terms) or state.dtype not in (torch.float32, torch.float64):
            continue
        for addend, (_, factor) in zip(known, terms, strict=True):
            total += factor * addend.double().reshape(-1)
        whole = state.double().reshape(-1)
        size, energy = float(whole.norm()), float(total @ total)
        if size > 0 and energy > 0:
            rest = whole - float(whole @ total) / energy * total
            is_end = (branch, at, terms) in ends and not _is_constant(rest.reshape(state.shape))
            rows.append(_row("stream_end" if is_end else "stream_shift", branch, float(rest.norm()) / size))
    return rows


def _is_constant(rest: Tensor) -> bool:
    """Return whether a term is the same for every sample of a batch: a position embedding, a bias."""
    return len(rest) > 1 and float((rest - rest.mean(0)).norm()) < CONSTANT * float(rest.norm())


def _in_one_order(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors list the same tokens in the same order: alike in shape, or one of them flattened."""
    return one.shape == other.shape or (one.dim() != other.dim() and one.shape[-1] == other.shape[-1])


def _sums(anatomy: Anatomy) -> Iterator[tuple[Branch, Point, Terms]]:
    """Yield every branch whose next state is seen with what it is the sum of, and their factors."""
    for index, branch in enumerate(anatomy.branches):
        stack = anatomy.stacks[branch.stack]
        before = stack.start if branch.depth == 1 else anatomy.branches[index - 1].state
        if branch.state is None or branch.is_gated_skip or stack.n_streams > 1:
            continue
        if branch.placement == "post" and not branch.skip_norms:
            continue  # what norms the sum is not known by its path
        if branch.skip_norms:
            yield branch, branch.state, ((Point(branch.skip_norms[-1], "output", ()), 1.0),)
        elif before is not None and (terms := _written(branch)):
            yield branch, branch.state, ((before, branch.scale), *terms)


def _ends(anatomy: Anatomy) -> Iterator[tuple[Branch, Point, Terms]]:
    """Yield the last branch of every stack with what the final norm reads, and the state behind it."""
    for stack in anatomy.stacks:
        last, outlet = (stack.branches[-1] if stack.branches else None), stack.outlet
        if last is not None and last.state is not None and outlet is not None and outlet.norm_path:
            yield last, Point(outlet.norm_path, "input", (0,)), ((last.state, 1.0),)


def _written(branch: Branch) -> Terms:
    if branch.write is not None:
        return ((branch.write, 1.0),)
    if branch.terms:
        return tuple((at, 1.0) for at in branch.terms)
    known = [(at, factor) for at, factor in zip(branch.seen, branch.factors, strict=True) if factor is not None]
    return tuple(known) if len(known) == len(branch.seen) else ()


def _row(check: str, branch: Branch, size: float) -> dict[str, Any]:
    return {
        "check": check,
        **place_of(branch),
        "observed": size,
        "expected": 0.0,
        "tolerance": TOLERANCE,
        "note": "state less a multiple of scale * skip and write, over the state: what is added and belongs to no branch",
    }
