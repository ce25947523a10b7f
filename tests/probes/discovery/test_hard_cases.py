"""Forty small models, one difficulty each: stream, placement and ledger are what the model's own code says."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from rheoscope.probes.discovery import discover
from small_models import mechanics as m
from small_models import placements as p
from small_models import streams as s
from small_models.parts import Model, batch, seeded
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """What the model's code says: adds of each stack, the placement of all branches, whether hooks see everything."""

    build: Callable[[], nn.Module]
    adds: tuple[int, ...]
    placement: str
    complete: bool = True
    given: Callable[[], Tensor] = batch


def _blocks(block: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Model(block)


CASES = {
    "pre": Case(_blocks(p.Pre), (6,), "pre"),
    "pre, norm written out": Case(_blocks(p.HandPre), (6,), "pre"),
    "pre, rms and gated": Case(_blocks(p.RmsPre), (6,), "pre"),
    "post": Case(_blocks(p.Post), (6,), "post"),
    "double": Case(_blocks(p.Double), (6,), "double"),
    "reordered": Case(_blocks(p.Reordered), (6,), "reordered"),
    "no norm, scaled writes": Case(_blocks(p.NoNorm), (6,), "none"),
    "parallel, two sums": Case(_blocks(p.Parallel), (3,), "pre"),
    "parallel, one sum": Case(_blocks(p.ParallelOneSum), (3,), "pre"),
    "parallel, stacked and summed": Case(_blocks(p.ParallelStack), (3,), "pre"),
    "functional norm, pre": Case(_blocks(p.FunctionalPre), (6,), "pre", complete=False),
    "functional norm, post": Case(_blocks(p.FunctionalPost), (6,), "post", complete=False),
    "DeepNorm": Case(_blocks(p.DeepNorm), (6,), "post"),
    "layer scale": Case(_blocks(p.LayerScale), (6,), "pre"),
    "addcmul": Case(_blocks(p.AddCMul), (6,), "pre"),
    "ReZero": Case(_blocks(p.ReZero), (6,), "none"),
    "fused add and norm": Case(lambda: m.Tupled(p.FusedAddNorm), (6,), "pre"),
    "fused product and add": Case(_blocks(p.FusedProduct), (6,), "pre", complete=False),
    "three branches": Case(_blocks(p.ThreeBranches), (9,), "pre"),
    "macaron": Case(_blocks(p.Macaron), (9,), "pre"),
    "residual network inside a branch": Case(_blocks(p.Inner), (6,), "pre"),
    "QK-norm, grouped heads, soft cap": Case(_blocks(p.Capped), (6,), "pre"),
    "in-place adds": Case(_blocks(m.InPlace), (6,), "pre"),
    "in-place adds on the branch": Case(_blocks(m.InPlaceBranch), (6,), "pre"),
    "operands swapped": Case(_blocks(m.SwappedAdd), (6,), "pre"),
    "subtracted writes": Case(_blocks(m.Subtracting), (6,), "pre"),
    "functional dropout": Case(_blocks(m.FunctionalDropout), (6,), "pre"),
    "stochastic depth": Case(_blocks(m.StochasticDepth), (6,), "pre"),
    "checkpointed": Case(_blocks(m.Checkpointed), (6,), "pre"),
    "custom autograd function": Case(_blocks(m.CustomFunction), (6,), "pre"),
    "float64 stream": Case(lambda: _double(Model(m.Float64Stream)), (6,), "pre"),
    "flattened batch": Case(lambda: m.Batched(p.Pre), (6,), "pre"),
    "time first": Case(lambda: m.TimeFirst(p.Pre), (6,), "pre"),
    "planar": Case(m.Planar, (6,), "pre", given=lambda: torch.randn(2, 3, 16, 20)),
    "inline parameters": Case(m.Inline, (3,), "pre", complete=False),
    "shared block": Case(lambda: m.Shared(p.Pre), (8,), "pre"),
    "mixture of experts": Case(_blocks(m.MixtureOfExperts), (6,), "pre"),
    "torch.nn.MultiheadAttention": Case(_blocks(m.Attended), (6,), "pre"),
    "encoder and decoder": Case(s.EncoderDecoder, (6, 9), "pre"),
    "towers": Case(s.Towers, (6, 6), "pre"),
    "stages": Case(s.Stages, (4, 4), "pre"),
    "GRU gate": Case(_blocks(s.GruGate), (6,), "unknown", complete=False),
    "lerp": Case(_blocks(s.Lerp), (6,), "pre"),
    "nGPT": Case(_blocks(s.NormalisedLerp), (6,), "post", complete=False),
    "class token taken out": Case(lambda: s.ClassToken(p.Pre), (6,), "pre", complete=False),
    "written by a mask": Case(lambda: s.Scattered(p.Pre), (6,), "pre", complete=False),
    "pooled between blocks": Case(lambda: s.Pooled(p.Pre), (6,), "pre"),
    "U-net shortcuts": Case(s.UNet, (9,), "mixed"),
    "reversible": Case(lambda: s.Reversible(p.Pre), (3, 3), "pre"),
    "hyper-connections": Case(s.HyperConnected, (6,), "pre", complete=False),
    "learned queries": Case(s.Queries, (6,), "pre"),
    "recurrence inside a branch": Case(_blocks(s.Recurrent), (3,), "pre"),
    "MLP-Mixer": Case(_blocks(s.Mixer), (6,), "pre"),
    "TransformerEncoder, pre": Case(lambda: _torch(True), (6,), "pre", given=lambda: torch.randn(2, 7, 16)),
    "TransformerEncoder, post": Case(lambda: _torch(False), (6,), "post", given=lambda: torch.randn(2, 7, 16)),
}


def _double(model: Model) -> Model:
    model.final, model.head = model.final.double(), model.head.double()
    return model


def _torch(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that nested tensors are off
        return nn.TransformerEncoder(layer, 3)


@pytest.mark.parametrize("name", list(CASES))
def test_the_stream_of_a_small_model_is_found_and_proven(name: str) -> None:
    case = CASES[name]

    anatomy = discover(seeded(case.build), case.given())

    assert tuple(len(stack.branches) for stack in anatomy.stacks) == case.adds
    assert anatomy.placement == case.placement
    assert anatomy.is_complete == case.complete
    assert bool(anatomy.problems) != case.complete
    assert (anatomy.ledger_error or 0.0) < 1e-5
