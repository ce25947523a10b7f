"""Fresh models beside the closed forms of their weights: what agrees, what does not, and what is not compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from rheoscope.diagnostics.against_theory import against_theory, not_compared
from rheoscope.diagnostics.attenuation import gradient_slope
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.residual import residual_growth
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor, nn

BASE = Architecture(6, 64, 4, vocabulary=200, context=16, norm_kind="rmsnorm", biases=False)


def check_up(model: nn.Module) -> Recording:
    return examine(model, torch.randint(200, (4, 16), generator=torch.Generator().manual_seed(0)))


def reference(**choices: Any) -> ReferenceTransformer:
    return ReferenceTransformer(replace(BASE, **choices), seed=0)


class Louder(nn.Module):
    """A norm's place at which the signal, or its gradient alone, is multiplied."""

    def __init__(self, inside: nn.Module, forward: float, backward: float) -> None:
        super().__init__()
        self.inside, self.up, self.down = inside, forward, backward

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up * self.inside(x)
        return y if self.down == 1 else self.down * y + (y - self.down * y).detach()


@pytest.mark.parametrize("choices", [{}, {"norm_placement": "post"}, {"norm_placement": "double", "init": "xavier"}])
def test_a_sound_fresh_model_follows_its_closed_form(choices: dict[str, Any]) -> None:
    found = against_theory(Tables(check_up(reference(**choices))))

    assert [(f.code, f.severity) for f in found] == [("state-theory", "info"), ("gradient-theory", "info")]


def test_the_finding_gives_what_was_observed_and_what_the_law_expects() -> None:
    tables = Tables(check_up(reference()))

    evidence = against_theory(tables)[0].evidence

    depth = int(evidence.quantity.split()[-1])
    states = tables.state_rms().set_index("depth")["rms"]
    assert evidence.observed == pytest.approx(states[depth])
    assert evidence.expected == pytest.approx(evidence.observed, rel=0.15)
    assert "closed form" in evidence.law


def test_gradients_that_a_branch_multiplies_beside_its_weights_are_named_where_it_does() -> None:
    model = reference()
    model.blocks[3].mlp_in = Louder(model.blocks[3].mlp_in, 1.0, 30.0)

    (finding,) = [f for f in against_theory(Tables(check_up(model))) if f.severity == "warning"]

    assert (finding.code, finding.block) == ("gradient-unlike-theory", 3)
    assert finding.evidence.observed > 2 * (finding.evidence.expected or 0)


def test_a_factor_in_a_parallel_block_may_be_design_and_is_a_remark() -> None:
    model = reference(is_parallel=True, activation="relu", init="xavier")
    for block in model.blocks:
        block.mlp.down = Louder(block.mlp.down, 0.1, 1.0)
        block.attention.output = Louder(block.attention.output, 0.1, 1.0)

    tables = Tables(check_up(model))
    found = against_theory(tables)

    assert not_compared(tables) == []
    assert found[0].code == "state-unlike-theory"
    assert "it may be design" in found[0].sentence
    assert {finding.severity for finding in found} == {"info"}


def test_the_slopes_are_told_beside_those_of_the_closed_form() -> None:
    tables = Tables(check_up(reference(init="xavier")))

    for (finding,) in (gradient_slope(tables), residual_growth(tables)):
        assert finding.evidence.expected == pytest.approx(finding.evidence.observed, abs=0.05)
        assert finding.evidence.expected != 0.0
        assert "closed form" in finding.sentence


def test_where_no_closed_form_holds_the_reason_is_told(made: Any) -> None:
    tables = Tables(made().recording())

    assert against_theory(tables) == []
    assert "trained" in not_compared(tables)[0]
    assert any("closed forms" in sentence for sentence in diagnose(made().recording()).not_judged)
    assert gradient_slope(tables)[0].evidence.expected == 0.0


@pytest.mark.parametrize("backward", [1.0, 3.0, 6.0])
def test_what_lies_beyond_its_band_is_not_said_to_follow(backward: float) -> None:
    model = reference()
    model.blocks[1].mlp_in = Louder(model.blocks[1].mlp_in, 1.0, backward)

    for finding in against_theory(Tables(check_up(model))):
        evidence = finding.evidence
        assert evidence.expected is not None
        assert evidence.tolerance is not None
        off = max(evidence.observed / evidence.expected, evidence.expected / evidence.observed) - 1
        assert ("follows" in finding.sentence) == (off <= evidence.tolerance / evidence.expected)
