"""Attention that hardens over training, and sinks. In hand-made recordings a query sees 64 keys: sqrt(2 ln 64) = 2.88."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.attention_in_training import attention_sinks, entropy_collapse
from rheoscope.diagnostics.tables import Tables

STEPS = tuple(range(0, 100, 10))
KEYS = 64
Course = Callable[[int, float], float]


def tables(made: Any, ratio: Course, std: Course, *, n_blocks: int = 6, sink: float = 0.1, loss: float = 1.0) -> Tables:
    """Return a run whose attention has the entropy ratio and the logit std that functions of block and progress give.

    Its loss goes from 1 to ``loss``.
    """
    recording = made(n_blocks, steps=STEPS, losses=np.linspace(1.0, loss, len(STEPS)).tolist())
    rows = [
        {
            "step": step,
            "micro_step": 0,
            "stack": 0,
            "block": block,
            "branch": "attention",
            "depth": 2 * block + 1,
            "call": 0,
            "head": head,
            "logit_max": 1.0,
            "logit_std": std(block, step / STEPS[-1]),
            "entropy": ratio(block, step / STEPS[-1]) * math.log(KEYS),
            "entropy_ratio": ratio(block, step / STEPS[-1]),
            "sink_share": sink,
        }
        for step in STEPS
        for block in range(n_blocks)
        for head in range(2)
    ]
    recording.tables["attention"] = pd.DataFrame(rows)
    return Tables(recording.recording())


def test_one_block_that_freezes_is_named_with_the_law_it_broke(made: Any) -> None:
    found = tables(made, lambda b, t: 1 - 0.95 * t if b == 3 else 0.9, lambda b, t: 20 * t if b == 3 else 0.5)

    (finding,) = entropy_collapse(found)

    assert (finding.code, finding.severity, finding.block) == ("entropy-collapse", "warning", 3)
    assert f"{20 * 80 / 90 / math.sqrt(2 * math.log(KEYS)):.2g} times sqrt(2 ln n)" in finding.sentence
    assert finding.step == 80  # 1 - .95 t is below .25 from t = .79 on
    assert finding.evidence.expected == pytest.approx(0.9)


def test_attention_that_freezes_while_the_loss_falls_is_a_remark(made: Any) -> None:
    course: tuple[Course, Course] = (
        lambda b, t: 1 - 0.95 * t if b == 3 else 0.9,
        lambda b, t: 20 * t if b == 3 else 0.5,
    )

    (falling,), (rising,) = (entropy_collapse(tables(made, *course, loss=loss)) for loss in (0.5, 2.0))

    assert (falling.severity, rising.severity) == ("info", "warning")


def test_selective_attention_whose_logits_do_not_pass_the_limit_is_sound(made: Any) -> None:
    assert entropy_collapse(tables(made, lambda b, t: 1 - 0.9 * t if b == 3 else 0.9, lambda b, t: 2.5 * t)) == []


def test_a_sink_lowers_entropy_and_is_no_collapse(made: Any) -> None:
    found = tables(made, lambda b, t: 1 - 0.9 * t if b == 3 else 0.9, lambda b, t: 4 * t, sink=0.9)

    assert entropy_collapse(found) == []
    (sinks,) = attention_sinks(found)
    assert (sinks.severity, sinks.evidence.observed) == ("info", 0.9)
    assert "12 of 12 attention heads" in sinks.sentence


def test_attention_that_was_hard_from_the_start_did_not_collapse(made: Any) -> None:
    assert entropy_collapse(tables(made, lambda b, t: 0.1 if b == 3 else 0.9, lambda b, t: 20.0)) == []


def test_what_all_blocks_share_is_a_remark_until_the_second_key_is_gone(made: Any) -> None:
    limit = math.sqrt(2 * math.log(KEYS))

    (soft,) = entropy_collapse(tables(made, lambda b, t: 1 - 0.9 * t, lambda b, t: 2 * limit * t))
    (hard,) = entropy_collapse(tables(made, lambda b, t: 1 - 0.9 * t, lambda b, t: 9 * limit * t))

    assert (soft.severity, soft.block) == ("info", None)
    assert (hard.severity, hard.block) == ("warning", None)


def test_the_first_block_may_choose_by_position_alone(made: Any) -> None:
    some = tables(made, lambda b, t: 1 - 0.85 * t if b == 0 else 0.9, lambda b, t: 20 * t)
    all_of_it = tables(made, lambda b, t: max(0.02, 1 - 1.5 * t) if b == 0 else 0.9, lambda b, t: 20 * t)

    assert entropy_collapse(some) == []
    assert [finding.block for finding in entropy_collapse(all_of_it)] == [0]


def test_two_blocks_have_too_few_siblings(made: Any) -> None:
    found = tables(made, lambda b, t: 1 - 0.95 * t if b == 1 else 0.9, lambda b, t: 20 * t, n_blocks=3)

    assert entropy_collapse(found) == []


def test_at_four_times_the_limit_the_second_of_gaussian_logits_has_two_per_cent_of_the_first() -> None:
    """The reason for FROZEN_HARD: the gap between the largest two of n Gaussians of std s is about s / sqrt(2 ln n)."""
    rng = np.random.default_rng(0)
    n = 1024
    logits = np.sort(4 * math.sqrt(2 * math.log(n)) * rng.standard_normal((4000, n)), axis=1)

    gap = float((logits[:, -1] - logits[:, -2]).mean())

    assert gap == pytest.approx(4.0, rel=0.15)
    assert math.exp(-4) == pytest.approx(0.018, abs=5e-4)
