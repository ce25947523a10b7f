"""The charts of attention, tokens and experts, on hand-made tables."""

import json

import pandas as pd
import pytest
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.recording import Recording
from rheoscope.reports.figures import attention
from rheoscope.reports.report import render

PLACE = {"stack": 0, "branch": "attention", "micro_step": 0}


@pytest.fixture
def recording(check_up: Recording) -> Recording:
    """Two steps of two blocks of two heads; block 1 grows sharp, and one call belongs to nobody."""
    heads = [
        {**PLACE, "step": s, "block": b, "depth": 2 * b + 1, "head": h, "call": 0, "logit_max": 1.0 + s * b * (1 + h),
         "logit_std": 1.0, "entropy": 1.0, "entropy_ratio": 0.9 - 0.4 * s * b * h, "sink_share": 0.1 + 0.2 * h}
        for s in (0, 1) for b in (0, 1) for h in (0, 1)
    ]  # fmt: skip
    heads.append({**heads[0], "stack": -1, "block": -1, "depth": -1, "branch": None, "logit_max": 1e6})
    tokens = [
        {**PLACE, "step": 0, "block": b, "depth": 2 * b + 2, "cosine": 0.2 + 0.1 * b, "angular_distance": 0.3 / (1 + b)}
        for b in (0, 1)
    ]
    experts = [
        {
            **PLACE,
            "branch": "moe",
            "step": 0,
            "block": 0,
            "depth": 2,
            "expert": e,
            "call": 0,
            "gate": "softmax",
            "load": load,
        }
        for e, load in ((0, 0.7), (1, 0.3))
    ]
    tables = {"attention": heads, "tokens": tokens, "experts": experts}
    return Recording.from_tables(
        {"label": "hand-made"}, check_up.anatomy, {name: pd.DataFrame(rows) for name, rows in tables.items()}
    )


def test_largest_logit_is_named_with_its_block_and_not_that_of_a_stranger(recording: Recording) -> None:
    chart = attention.largest_logits(Tables(recording))

    assert chart.title == "The largest attention logit is 3, in block 1 (last sampled step)"


def test_sharpest_head_is_named(recording: Recording) -> None:
    chart = attention.sharpest_heads(Tables(recording))

    assert chart.title == "The sharpest attention has 0.5 of the largest entropy: head 1 of block 1"


def test_idlest_block_is_named(recording: Recording) -> None:
    assert attention.angular_distance(Tables(recording)).title == "Block 1 turns the stream least: by 0.15 π"


def test_load_is_told_against_an_even_one(recording: Recording) -> None:
    assert attention.expert_loads(Tables(recording)).title == "The busiest expert takes 1.4 times an even load"


def test_a_page_draws_all_six(recording: Recording) -> None:
    text = render(recording)

    names = (
        "attention-logits",
        "attention-entropy",
        "attention-sinks",
        "token-similarity",
        "angular-distance",
        "expert-loads",
    )
    assert all(f'data-figure="{name}"' in text for name in names)


def test_without_tables_every_chart_says_why(empty: Recording) -> None:
    tables = Tables(empty)
    charts = [chart(tables) for chart in (attention.largest_logits, attention.token_similarity, attention.expert_loads)]

    assert all(chart.figure is None and chart.absent for chart in charts)
    assert json.dumps([chart.absent for chart in charts])
