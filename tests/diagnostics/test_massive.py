"""Massive activations. Streams of hand-made recordings are 8 wide; here they are said to be 64 wide."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from rheoscope.diagnostics.massive import massive_activations
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.anatomy import Anatomy

STEPS = tuple(range(0, 400, 10))


def run(made: Any, *, channel: Any, absmax: float = 4.0, loss: float = 1.0) -> Tables:
    """Return a run whose states have RMS 1 and the largest channel mean that ``channel(depth, progress)`` gives.

    Its loss goes from 1 to ``loss``.
    """
    losses = [1.0 + (loss - 1.0) * step / STEPS[-1] for step in STEPS]
    recording = made(6, steps=STEPS, state=lambda depth: 1.0, losses=losses)
    (stack,) = recording.anatomy.stacks
    recording.anatomy = Anatomy(stacks=(dataclasses.replace(stack, width=64),))
    rows = recording.tables["activations"]
    is_state = (rows["site"] == "state") & (rows["direction"] == "forward")
    rows.loc[is_state, "channel_absmean"] = [
        channel(depth, step / STEPS[-1])
        for depth, step in zip(rows.loc[is_state, "depth"], rows.loc[is_state, "step"], strict=True)
    ]
    rows.loc[is_state, "absmax"] = absmax
    return Tables(recording.recording())


def test_even_channels_are_not_mentioned(made: Any) -> None:
    assert massive_activations(run(made, channel=lambda depth, t: 1.0)) == []


def test_a_channel_with_a_third_of_the_energy_is_a_remark_that_names_the_block_it_comes_from(made: Any) -> None:
    (finding,) = massive_activations(run(made, channel=lambda depth, t: 4.62 if depth >= 6 else 1.0))

    assert (finding.severity, finding.block, finding.component) == ("info", 2, "mlp")
    assert finding.evidence.observed == pytest.approx(4.62**2 / 64)


def test_a_value_beyond_a_hundred_times_the_rms_is_a_remark(made: Any) -> None:
    (finding,) = massive_activations(run(made, channel=lambda depth, t: 1.0, absmax=150.0))

    assert (finding.severity, finding.evidence.observed) == ("info", 150.0)


def test_a_channel_that_takes_over_behind_one_block_and_still_grows_is_a_warning(made: Any) -> None:
    (finding,) = massive_activations(run(made, channel=lambda depth, t: 1 + 6 * t if depth >= 6 else 1.0))

    assert (finding.severity, finding.block, finding.component) == ("warning", 2, "mlp")


def test_a_channel_that_takes_over_while_the_loss_falls_is_a_remark(made: Any) -> None:
    (finding,) = massive_activations(run(made, channel=lambda depth, t: 1 + 6 * t if depth >= 6 else 1.0, loss=0.5))

    assert finding.severity == "info"


def test_a_channel_that_has_settled_is_a_remark_however_large(made: Any) -> None:
    (finding,) = massive_activations(run(made, channel=lambda depth, t: min(7.0, 1 + 30 * t) if depth >= 6 else 1.0))

    assert finding.severity == "info"
