"""Norm queries and keys or stop to, and bound the logits of attention or stop to."""

from __future__ import annotations

from rheoscope.probes.anatomy import Anatomy, Branch
from rheoscope.probes.branch_anatomy import AttentionAnatomy
from rheoscope.probes.discovery.places import AttentionPlace, BranchPlaces, CallPlace, Places
from rheoscope.probes.errors import LabError
from rheoscope.probes.plain_norm import PlainNorm
from rheoscope.probes.rewriting import Rewriting
from rheoscope.probes.rewritten_attention import RewrittenAttention, Uncapped
from torch import nn

from .choices import Choices
from .replaced import added, replace_module


def change_attention(
    model: nn.Module, anatomy: Anatomy, places: Places, choices: Choices, like: PlainNorm | None, rewriting: Rewriting
) -> None:
    """Change QK-norm and soft cap of every attention branch."""
    for branch, found in zip(anatomy.branches, places.branches, strict=True):
        if branch.attention is None:
            continue
        place = _place(branch, branch.attention, found)
        action = RewrittenAttention(place.query, place.key, place.is_transposed, place.query_factor)
        if choices.qk_norm:
            _put_norms(model, branch, branch.attention, action, like)
        elif choices.qk_norm is False:
            _take_norms(model, branch, place)
        if choices.soft_cap:
            _cap(branch, branch.attention, place, action, choices.soft_cap)
        elif choices.soft_cap is not None:
            rewriting.calls[_cap_of(branch, place)] = Uncapped()
        if action.query_norm is not None or action.cap:
            rewriting.calls[place.call] = action


def _place(branch: Branch, attention: AttentionAnatomy, found: BranchPlaces) -> AttentionPlace:
    if found.attention is None:
        why = attention.reason or "Queries and keys meet inside one call of torch's fused attention."
        raise LabError(
            f"Expected queries and keys in sight in {_where(branch)}, got none: {why} Leave these choices out."
        )
    return found.attention


def _put_norms(
    model: nn.Module, branch: Branch, attention: AttentionAnatomy, action: RewrittenAttention, like: PlainNorm | None
) -> None:
    if attention.qk_norm != "none":
        raise LabError(
            f"Expected attention without QK-norm for qk_norm=True, got {attention.qk_norm} in {_where(branch)}. Leave it out."
        )
    if attention.head_size is None or like is None:
        raise LabError(
            f"Expected heads of known size in {_where(branch)}, got none: {attention.reason} Leave qk_norm out."
        )
    name = f"{branch.stack}_{branch.depth}"
    action.query_norm = added(model, like.new(attention.head_size), f"{name}_query")
    action.key_norm = added(model, like.new(attention.head_size), f"{name}_key")


def _take_norms(model: nn.Module, branch: Branch, place: AttentionPlace) -> None:
    if not place.norms and place.is_in_modules:
        raise LabError(f"Expected QK-norm for qk_norm=False, got none in {_where(branch)}. Leave it out.")
    if not place.is_in_modules:
        raise LabError(
            f"Expected norms of queries and keys in modules of their own, got some written out in calls in {_where(branch)}. "
            "Move them into modules."
        )
    for norm in {id(m): m for m in (model.get_submodule(path) for path in place.norms)}.values():
        replace_module(model, norm, nn.Identity())


def _cap(
    branch: Branch, attention: AttentionAnatomy, place: AttentionPlace, action: RewrittenAttention, cap: float
) -> None:
    if attention.soft_cap is not None:
        raise LabError(
            f"Expected logits without a bound, got {attention.soft_cap:g} in {_where(branch)}. Pass 0 to take it away."
        )
    if place.call.name != "scaled_dot_product_attention":
        raise LabError(
            f"Expected torch's scaled_dot_product_attention for soft_cap, got {place.call.name} in {_where(branch)}, "
            "after which scale and mask are the model's own. Use that function."
        )
    action.cap = cap


def _cap_of(branch: Branch, place: AttentionPlace) -> CallPlace:
    if place.cap is None:
        raise LabError(f"Expected logits with a bound for soft_cap=0, got none in {_where(branch)}. Leave it out.")
    return place.cap


def _where(branch: Branch) -> str:
    return f"the {branch.kind} branch of block {branch.block}"
