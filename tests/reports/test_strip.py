"""The coloured column of blocks: a number in every cell, a link a block, colours that text stands out from."""

from __future__ import annotations

import math
import re

import pandas as pd
import pytest
from rheoscope.reports.strip import MOST_BLOCKS, left_out, strip


def values(n_blocks: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "stack": 0,
            "block": range(n_blocks),
            "state_rms": [1.0 + block for block in range(n_blocks)],
            "gradient_rms": [10.0**-block for block in range(n_blocks)],
            "skip_share": [0.5] * n_blocks,
        }
    )


def test_every_block_has_its_link_and_its_numbers_in_words() -> None:
    drawn = strip(values(4), n_stacks=1)

    assert re.findall(r'data-place="([^"]*)"', drawn) == ["3", "2", "1", "0"]
    assert 'aria-label="block 2: state RMS 3, gradient RMS 0.01, skip share 0.5"' in drawn
    assert drawn.count("<title>") == 4
    assert {">1<", ">4<", ">0.001<"} <= set(re.findall(r">[^<]+<", drawn))


def test_of_several_stacks_a_link_names_its_own() -> None:
    assert 'href="#block=1.2"' in strip(values(4).assign(stack=1), n_stacks=2)


def test_what_is_not_recorded_is_said_and_has_no_colour() -> None:
    ill = values(3)
    ill.loc[1, "state_rms"] = math.nan
    ill.loc[2, "gradient_rms"] = math.inf
    ill["skip_share"] = math.nan

    drawn = strip(ill, n_stacks=1)

    assert "not recorded" in drawn
    assert "infinite" in drawn
    assert drawn.count('fill="none"') == 2
    assert "skip share" not in drawn


@pytest.mark.parametrize("column", ["state_rms", "gradient_rms", "skip_share"])
def test_nothing_at_all_is_still_a_column_of_blocks(column: str) -> None:
    empty = values(2).assign(state_rms=math.nan, gradient_rms=math.nan, skip_share=math.nan)
    empty[column] = [math.inf, math.nan]

    assert strip(empty, n_stacks=1).count("data-place") == 2


def test_of_many_blocks_those_that_stand_out_are_drawn() -> None:
    many = values(1_000).assign(state_rms=1.0, gradient_rms=1e-3)
    many.loc[617, "gradient_rms"] = 1e-6

    drawn = strip(many, n_stacks=1)

    assert drawn.count("data-place") == MOST_BLOCKS
    assert 'data-place="617"' in drawn
    assert left_out(many) == f"{MOST_BLOCKS} of 1,000 blocks are drawn: those that stand out."
    assert left_out(values(4)) == ""
