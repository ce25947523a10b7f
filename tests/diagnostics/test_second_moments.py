"""Adam's second moments: below epsilon, and out of date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.diagnostics.second_moments import below_epsilon, stale_second_moments
from rheoscope.diagnostics.tables import Tables

STEPS = tuple(range(0, 300, 10))


def run(
    made: Any, *, below: Callable[[int], float] = lambda b: 0.0, stale: Callable[[int, int], float] = lambda b, s: 1.0
) -> Any:
    """Return the parts of a run under Adam."""
    recording = made(6, steps=STEPS, update=lambda block: 1e-3)
    rows = recording.tables["parameters"]
    rows["below_epsilon_share"] = [below(block) for block in rows["block"]]
    rows["staleness"] = [stale(block, step) for block, step in zip(rows["block"], rows["step"], strict=True)]
    return recording


def test_one_block_below_epsilon_is_a_warning(made: Any) -> None:
    (finding,) = below_epsilon(Tables(run(made, below=lambda block: 0.9 if block == 2 else 0.01).recording()))

    assert (finding.code, finding.severity, finding.block) == ("below-epsilon", "warning", 2)


def test_an_epsilon_that_is_large_for_all_blocks_is_a_remark(made: Any) -> None:
    (finding,) = below_epsilon(Tables(run(made, below=lambda block: 0.9).recording()))

    assert (finding.severity, finding.block) == ("info", None)
    assert "In 6 of 6 blocks 90%" in finding.sentence


def test_a_few_weights_below_epsilon_are_not_mentioned(made: Any) -> None:
    assert below_epsilon(Tables(run(made, below=lambda block: 0.3).recording())) == []


def test_gradients_that_come_back_are_told_of_a_block_at_an_end_too(made: Any) -> None:
    far = run(made, stale=lambda block, step: 6.3 if block == 0 and step == 100 else 1.1)
    near = run(made, stale=lambda block, step: 4.0 if block == 0 and step == 100 else 1.1)

    (finding,) = stale_second_moments(Tables(far.recording()))

    assert (finding.block, finding.step) == (0, 100)
    assert stale_second_moments(Tables(near.recording())) == []


def test_branches_that_start_at_zero_are_not_judged_by_their_first_steps(made: Any) -> None:
    recording = run(made)
    recording.set("parameters", "below_epsilon_share", 1.0, step=0, block=2)

    assert below_epsilon(Tables(recording.recording())) == []


def test_a_block_whose_gradients_come_back_after_a_gap_is_named_with_the_step(made: Any) -> None:
    found = run(made, stale=lambda block, step: 8.0 if block == 4 and 100 <= step <= 130 else 1.0)

    (finding,) = stale_second_moments(Tables(found.recording()))

    assert (finding.code, finding.severity, finding.block, finding.step) == ("stale-second-moment", "warning", 4, 100)


def test_a_hard_batch_that_all_blocks_see_is_sound(made: Any) -> None:
    found = run(made, stale=lambda block, step: 3.7 - 0.2 * block if step in (100, 110) else 1.0)

    assert stale_second_moments(Tables(found.recording())) == []


def test_one_sampled_step_is_chance(made: Any) -> None:
    found = run(made, stale=lambda block, step: 4.0 if block == 3 and step in (100, 120) else 1.0)

    assert stale_second_moments(Tables(found.recording())) == []


def test_one_sampled_step_far_beyond_all_siblings_is_enough(made: Any) -> None:
    found = run(made, stale=lambda block, step: 8.0 if block == 3 and step == 100 else 1.0)

    assert [finding.step for finding in stale_second_moments(Tables(found.recording()))] == [100]


def test_the_first_and_the_last_block_vary_more(made: Any) -> None:
    found = run(made, stale=lambda block, step: 3.5 if block in (0, 5) and step in (100, 110) else 1.0)

    assert stale_second_moments(Tables(found.recording())) == []


def test_moments_that_fell_behind_before_the_loss_spiked_are_remarked_on(made: Any) -> None:
    found = run(made, stale=lambda block, step: 4.0 if step == 200 else 1.0)
    loss = 2 + 0.05 * np.random.default_rng(0).standard_normal(300)
    loss[204:220] += 2
    found.tables["steps"] = pd.DataFrame({"step": range(300), "loss": loss})

    (finding,) = stale_second_moments(Tables(found.recording()))

    assert (finding.severity, finding.step) == ("info", 200)
    assert "at step 204 the loss spiked" in finding.sentence


def test_another_optimizer_is_not_judged(made: Any) -> None:
    recording = made(steps=STEPS, update=lambda block: 1e-3).recording()

    assert below_epsilon(Tables(recording)) == stale_second_moments(Tables(recording)) == []
