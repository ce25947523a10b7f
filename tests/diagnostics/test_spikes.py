"""Loss spikes: the score against a plain loop, spikes that pass, that stay, and batches that only differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.spikes import episodes, loss_spikes, spike_score
from rheoscope.diagnostics.tables import Tables

N = 400


def losses(seed: int = 0) -> np.ndarray:
    """Return a loss that falls and wavers."""
    return 2 + 3 * np.exp(-np.arange(N) / 60) + 0.1 * np.random.default_rng(seed).standard_normal(N)


def run(made: Any, loss: np.ndarray, norm: np.ndarray | None = None, **more: Any) -> Tables:
    """Return a run with this loss and gradient norm of every step."""
    recording = made(steps=tuple(range(0, N, 10)), **more)
    frame = pd.DataFrame({"step": range(N), "loss": loss, "is_sampled": [step % 10 == 0 for step in range(N)]})
    recording.tables["steps"] = frame if norm is None else frame.assign(unclipped_gradient_norm=norm)
    return Tables(recording.recording())


def test_the_score_is_what_a_plain_loop_counts() -> None:
    values = np.random.default_rng(1).standard_normal(2500)
    values[[300, 301, 1700, 2400]] += 30
    counted = 0
    for t in range(50, 2500):
        window = values[max(0, t - 1000) : t]
        counted += values[t] >= window.mean() + 7 * window.std(ddof=1)

    assert spike_score(values) == pytest.approx(counted / (2500 - 50))
    assert counted == 4


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_falls_and_wavers_has_no_spike(made: Any, seed: int) -> None:
    assert loss_spikes(run(made, losses(seed))) == []


def test_a_spike_that_passes_is_bounded() -> None:
    loss = losses()
    loss[200:220] += 3

    (found,) = episodes(np.arange(N), loss)

    assert (found.first, found.last, found.is_over) == (200, 219, True)
    assert found.highest == pytest.approx(loss[200:220].max())


def test_a_spike_of_five_per_cent_of_the_run_with_its_gradient_is_a_warning(made: Any) -> None:
    loss, norm = losses(), np.ones(N)
    loss[200:220] += 3
    norm[198:210] = 40

    (finding,) = loss_spikes(run(made, loss, norm))

    assert (finding.code, finding.severity, finding.step) == ("loss-spike", "warning", 200)
    assert "The gradient norm rose 40-fold" in finding.sentence


def test_a_loss_that_jumps_without_its_gradient_is_a_remark(made: Any) -> None:
    loss = losses()
    loss[200:] += 3

    (alone,) = loss_spikes(run(made, loss, np.ones(N)))
    (unknown,) = loss_spikes(run(made, loss))

    assert "had not come back by the end" in alone.sentence
    assert (alone.severity, unknown.severity) == ("info", "warning")


def test_a_single_batch_is_no_spike(made: Any) -> None:
    loss = losses()
    loss[[150, 250, 350]] += 5

    (finding,) = loss_spikes(run(made, loss))

    assert (finding.code, finding.severity) == ("spike-score", "info")
    assert "3 of 400 steps" in finding.sentence


def test_batches_of_two_kinds_are_no_spikes(made: Any) -> None:
    loss = losses()
    loss[np.random.default_rng(3).random(N) < 0.05] += 4

    assert [finding.severity for finding in loss_spikes(run(made, loss))] in ([], ["info"])


def test_the_block_whose_gradient_rose_first_is_named(made: Any) -> None:
    loss = losses()
    loss[205:230] += 3
    recording = made(steps=tuple(range(0, N, 5)))
    recording.set("parameters", "gradient_rms", 0.1, step=200, block=4)
    recording.set("parameters", "gradient_rms", 0.3, step=205)
    recording.tables["steps"] = pd.DataFrame({"step": range(N), "loss": loss, "is_sampled": True})

    (finding,) = loss_spikes(Tables(recording.recording()))

    assert finding.block == 4
    assert "the gradient of the weights of block 4 was the first to rise" in finding.sentence


def test_losses_that_are_not_finite_are_left_to_other_rules(made: Any) -> None:
    loss = losses()
    loss[300:] = np.nan

    assert loss_spikes(run(made, loss)) == []


def test_a_short_run_has_no_band(made: Any) -> None:
    assert loss_spikes(Tables(made(steps=(0, 1, 2), losses=[1.0, 9.0, 90.0]).recording())) == []
