"""Compared runs that make an experiment: learning rates, seeds and batches, told as such in the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pandas as pd
import pytest
import torch
from rheoscope.diagnostics.comparison import Comparison, compare
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from rheoscope.reports.compared import Compared
from rheoscope.reports.content import ComparisonContent, content
from rheoscope.reports.figures.chart import Chart
from rheoscope.reports.figures.variant_coherence import coherence
from rheoscope.reports.figures.variant_losses import crossed as crossed_chart

TINY = Architecture(n_blocks=2, width=16, n_heads=2, context=12, vocabulary=256)
TABLES = ("activations", "gradient_paths", "parameters", "identities", "tokens", "attention")
Cell = tuple[str, bool]


@pytest.fixture(scope="module")
def checked() -> dict[Cell, Recording]:
    """One check-up of each cell of placement x biases."""
    tokens = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    cells = [(placement, biases) for placement in ("pre", "post") for biases in (True, False)]
    return {
        (placement, biases): examine(
            ReferenceTransformer(replace(TINY, norm_placement=placement, biases=biases), seed=0), tokens
        )
        for placement, biases in cells
    }


def trained(start: Recording, last: float, lr: float) -> Recording:
    """Return a recording of the same model whose loss goes from 5 to ``last`` in ten steps."""
    tables = {name: start.table(name) for name in TABLES}
    losses = [5 + (last - 5) * min(1.0, step / 8) for step in range(10)]
    tables["steps"] = pd.DataFrame({"step": range(10), "loss": losses, "lr": lr, "is_sampled": [True] + [False] * 9})
    return Recording.from_tables({"created": "now"}, start.anatomy, tables)


def told(comparison: Comparison) -> tuple[ComparisonContent, dict[str, Chart]]:
    """Return what the page says, and its charts by key."""
    found = content(comparison)
    assert isinstance(found, ComparisonContent)
    return found, {chart.key: chart for section in found.sections for chart in section.charts}


def crossed(checked: dict[Cell, Recording], loss: Callable[[str, bool, int], float]) -> Comparison:
    return compare(
        {
            f"{placement} {'with' if biases else 'without'} {seed}": trained(start, loss(placement, biases, seed), 1e-3)
            for (placement, biases), start in checked.items()
            for seed in range(2)
        }
    )


def test_seeds_tell_an_interaction_from_chance(checked: dict[Cell, Recording]) -> None:
    clear = crossed(checked, lambda placement, biases, seed: 2 + 0.01 * seed + (placement == "post") * biases * 0.5)
    noise = crossed(checked, lambda placement, biases, seed: 2 + 0.3 * ((seed * 7 + 3 * biases + len(placement)) % 5))

    page, charts = told(clear)
    assert "post against pre-norm: 0.5 (" in charts["interaction"].title
    assert "), beyond chance" in charts["interaction"].title
    assert "not beyond chance" in crossed_chart(Compared(noise)).title
    interval = page.summary["final loss over seeds, 95 % interval"].iloc[0]
    assert interval.startswith("2 (")


def test_one_run_of_each_design_is_no_experiment_and_says_so(checked: dict[Cell, Recording]) -> None:
    comparison = compare({f"{p} {b}": trained(start, 2.0, 1e-3) for (p, b), start in checked.items()})

    page, charts = told(comparison)
    assert charts["interaction"].figure is None
    assert "differ in their seed alone" in charts["interaction"].absent
    assert "different learning rates" in charts["loss-by-learning-rate"].absent
    assert not [column for column in page.summary if "interval" in column or "learning rate" in column]


def test_a_sweep_draws_its_curves_and_fills_the_summary(checked: dict[Cell, Recording]) -> None:
    ends = {1e-4: 3.0, 1e-3: 2.0, 1e-2: 2.5, 1e-1: 9.0}
    comparison = compare(
        {
            f"{p} {b} {lr}": trained(start, end + (p == "post"), lr)
            for (p, b), start in checked.items()
            for lr, end in ends.items()
        }
    )

    page, charts = told(comparison)
    drawn = charts["loss-by-learning-rate"]
    assert "0.001 (pre-norm, biases)" in drawn.title
    assert drawn.figure is not None
    line = drawn.figure.data[0]
    assert list(line.x) == [1e-4, 1e-3, 1e-2]
    assert line.y[1] == pytest.approx(2.0)
    assert "unstable" in drawn.figure.data[1].name
    assert set(page.summary["best learning rate"]) == {1e-3}
    assert set(page.summary["largest stable learning rate"]) == {"0.01"}


def test_batches_of_two_sizes_test_the_growth_of_coherence() -> None:
    model = ReferenceTransformer(TINY, seed=0)
    tokens = torch.randint(256, (8, 12), generator=torch.Generator().manual_seed(0))

    def examined(n: int) -> Recording:
        return examine(model, tokens[:n], lambda output, batch: output.logits.logsumexp(-1).mean())

    one = compare({"a": examined(2), "b": examined(2)})
    two = compare({"small": examined(2), "large": examined(8)})

    assert "nothing tests the growth" in coherence(Compared(one)).reading
    drawn = coherence(Compared(two))
    assert "of what the smallest batch's cosine predicts" in drawn.title
    table = drawn.table.set_index("label")
    assert table.loc["large", "n_tokens"] == 4 * table.loc["small", "n_tokens"]
    expected = 1 + (table.loc["large", "n_tokens"] - 1) * table.loc["small", "cosine"]
    assert table.loc["large", "predicted"] == pytest.approx(expected)
