"""Faults planted in one block of the reference transformer are named: class and block; the sound model has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from torch import Tensor, nn
from torch.nn import functional

BLOCK = 2
IDS = torch.randint(4, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def model(**fields: Any) -> ReferenceTransformer:
    given = {"n_blocks": 6, "width": 32, "n_heads": 4, "vocabulary": 61, "context": 12, "init": "xavier"} | fields
    return ReferenceTransformer(Architecture(**given), seed=0)


def loss(output: Any, _: Any) -> Tensor:
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def alarms(made: nn.Module) -> list[tuple[str, int | None]]:
    found = diagnose(examine(made, IDS, loss))
    return [(finding.code, finding.block) for finding in found if finding.severity != "info"]


@torch.no_grad()
def times(path: str, factor: float, name: str = "weight") -> Callable[[nn.Module], None]:
    def plant(made: nn.Module) -> None:
        with torch.no_grad():
            getattr(made.get_submodule(path), name).mul_(factor)

    return plant


def plus(path: str, size: float) -> Callable[[nn.Module], None]:
    def plant(made: nn.Module) -> None:
        with torch.no_grad():
            made.get_submodule(path).bias.add_(size)

    return plant


def freeze(made: nn.Module) -> None:
    for parameter in made.blocks[BLOCK].parameters():
        parameter.requires_grad_(False)


def epsilon(made: nn.Module) -> None:
    made.blocks[BLOCK].mlp_in.eps = 10.0


def drop(made: nn.Module) -> None:
    made.blocks[BLOCK].mlp.dropout.p = 0.5


def no_norm(made: nn.Module) -> None:
    made.blocks[BLOCK].attention_in = nn.Identity()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm_placement": "post"},
        {"norm_placement": "double", "norm_kind": "rmsnorm", "biases": False},
        {"norm_placement": "reordered"},
        {"is_parallel": True},
        {"activation": "relu", "init": "normal"},
        {"n_blocks": 12, "dropout": 0.1},
    ],
)
def test_a_sound_model_alarms_nobody(fields: dict[str, Any]) -> None:
    assert alarms(model(**fields)) == []


@pytest.mark.parametrize(
    ("plant", "code"),
    [
        (times(f"blocks.{BLOCK}.attention.output", 10), "weight-scale"),
        (times(f"blocks.{BLOCK}.mlp.down", 0.1), "weight-scale"),
        (times(f"blocks.{BLOCK}.mlp.down", 0.0), "weight-scale"),
        (times(f"blocks.{BLOCK}.mlp_in", 3.0), "gain-scale"),
        (times(f"blocks.{BLOCK}.mlp_in", 0.0), "gain-scale"),
        (plus(f"blocks.{BLOCK}.mlp.down", 1.0), "bias-scale"),
        (plus(f"blocks.{BLOCK}.mlp.up", -20.0), "bias-scale"),
        (freeze, "frozen-block"),
        (epsilon, "norm-epsilon"),
        (drop, "dropout-odd"),
        (no_norm, "norm-placement-odd"),
    ],
)
def test_one_block_that_differs_is_named(plant: Callable[[nn.Module], None], code: str) -> None:
    made = model()
    plant(made)
    found = alarms(made)
    assert (code, BLOCK) in found
    assert {block for _, block in found} == {BLOCK}


def test_dead_units_are_named() -> None:
    made = model(activation="relu")
    plus(f"blocks.{BLOCK}.mlp.up", -20.0)(made)
    assert ("dead-units", BLOCK) in alarms(made)


def test_a_head_that_is_sure_of_wrong_answers_is_named() -> None:
    made = model()
    times("head", 50.0)(made)
    assert ("initial-loss", None) in alarms(made)
