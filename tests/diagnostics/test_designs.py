"""Compared runs as an experiment: sweeps of the learning rate and factorials, on losses that are known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.designs import interaction, learning_rates, outcomes, sweep


def runs(losses: dict[tuple[str, bool, float], list[float]], *, stable: bool = True) -> pd.DataFrame:
    """Return outcomes: (placement, biases, learning rate) -> one final loss a seed; infinite ones are unstable."""
    rows = [
        {
            "label": f"{placement} {biases} {lr} {seed}",
            "group": "",
            "placement": placement,
            "has_biases": biases,
            "norm_kind": "layernorm",
            "n_blocks": 4,
            "lr": lr,
            "loss": loss,
            "is_stable": bool(np.isfinite(loss)) and stable,
        }
        for (placement, biases, lr), values in losses.items()
        for seed, loss in enumerate(values)
    ]
    return pd.DataFrame(rows)


CROSSED = {
    ("pre", True, 1e-3): [2.0, 2.2],
    ("pre", False, 1e-3): [2.1, 2.3],
    ("post", True, 1e-3): [3.0, 3.2],
    ("post", False, 1e-3): [2.5, 2.7],
}


def test_the_interaction_is_the_difference_of_differences_with_welchs_interval() -> None:
    found = interaction(runs(CROSSED))

    effect = found[found["effect"] == "interaction"].iloc[0]
    # (3.1 - 2.6) - (2.1 - 2.2); every mean has a variance of .02 / 2, and with equal ones all 4 degrees of freedom count.
    half = 2.776 * np.sqrt(4 * 0.01)
    assert effect["loss"] == pytest.approx(0.6)
    assert (effect["low"], effect["high"]) == pytest.approx((0.6 - half, 0.6 + half))
    assert effect["placement"] == "post against pre"
    assert len(found[found["effect"] == ""]) == 4


@pytest.mark.parametrize(
    "spoilt",
    [
        {key: values for key, values in CROSSED.items() if key != ("post", False, 1e-3)},
        CROSSED | {("post", False, 1e-3): [2.5]},
        {key: values for key, values in CROSSED.items() if key[0] == "pre"},
        {(p, b, lr * (2 if b else 1)): values for (p, b, lr), values in CROSSED.items()},
        CROSSED | {("post", True, 1e-3): [float("inf"), 3.0]},
    ],
    ids=["a cell is missing", "one seed", "one placement", "another learning rate", "diverged"],
)
def test_what_is_no_repeated_factorial_has_no_interaction(spoilt: dict[tuple[str, bool, float], list[float]]) -> None:
    assert not len(interaction(runs(spoilt)))


def test_a_sweep_has_its_best_and_its_largest_stable_learning_rate() -> None:
    diverged = float("nan")
    swept = sweep(
        runs(
            {
                ("pre", True, 1e-3): [2.4, 2.6],
                ("pre", True, 3e-3): [2.0, 2.2],
                ("pre", True, 1e-2): [2.3, diverged],
                ("post", True, 1e-3): [2.7],
                ("post", True, 3e-3): [2.5],
                ("post", False, 1e-3): [9.0],
            }
        )
    )

    assert swept[["placement", "lr", "n_runs", "n_stable"]].to_numpy().tolist() == [
        ["pre", 1e-3, 2, 2],
        ["pre", 3e-3, 2, 2],
        ["pre", 1e-2, 2, 1],
        ["post", 1e-3, 1, 1],
        ["post", 3e-3, 1, 1],
    ]
    best = learning_rates(swept).set_index("placement")
    assert best.loc["pre", ["best_lr", "largest_stable_lr", "is_bounded"]].tolist() == [3e-3, 3e-3, True]
    assert best.loc["post", ["best_lr", "largest_stable_lr", "is_bounded"]].tolist() == [3e-3, 3e-3, False]


def test_an_outcome_is_stable_where_the_loss_is_finite_and_falls() -> None:
    names = ["label", "group", "placement", "has_biases", "norm_kind", "n_blocks", "loss_last"]
    labels = ["falls", "rises", "breaks", "check-up"]
    rows = [[label, "", "pre", True, "layernorm", 4, end] for label, end in zip(labels, [1, 5, 2, 3], strict=True)]
    summary = pd.DataFrame(rows, columns=names)
    series = {"falls": [3, 2, 1], "rises": [3, 4, 5], "breaks": [3, float("inf"), 2], "check-up": [3]}

    found = outcomes(
        summary, {k: pd.DataFrame({"loss": v, "lr": [1e-4, 1e-3, 5e-4][: len(v)]}) for k, v in series.items()}
    )

    assert found[["label", "is_stable", "lr"]].to_numpy().tolist() == [
        ["falls", True, 1e-3],
        ["rises", False, 1e-3],
        ["breaks", False, 1e-3],
    ]


def test_no_runs_are_no_experiment() -> None:
    nothing = runs(CROSSED).iloc[:0]
    assert not len(sweep(nothing))
    assert not len(learning_rates(sweep(nothing)))
    assert not len(interaction(nothing))
