"""The growth of the residual stream, and fp16's range."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rheoscope.diagnostics.residual import range_of_fp16, residual_growth
from rheoscope.diagnostics.tables import Tables


def test_a_stream_that_doubles_every_block_is_a_warning(made: Any) -> None:
    # Doubling is 0.693 a block, just above the limit of 0.69.
    (finding,) = residual_growth(Tables(made(12, state=lambda depth: 2.0 ** (depth / 2)).recording()))

    assert (finding.severity, finding.evidence.observed) == ("warning", pytest.approx(math.log(2)))


def test_growth_with_the_square_root_of_depth_is_none(made: Any) -> None:
    (finding,) = residual_growth(Tables(made(24, state=lambda depth: (1 + depth) ** 0.5).recording()))

    assert finding.severity == "info"


def test_a_post_norm_stream_of_constant_size_is_described(made: Any) -> None:
    (finding,) = residual_growth(Tables(made(state=lambda depth: 1.0).recording()))

    assert "is 1 after block 0 and 1 after block 5" in finding.sentence


def test_a_small_embedding_before_the_first_block_is_no_growth(made: Any) -> None:
    (finding,) = residual_growth(Tables(made(state=lambda depth: 1.0 if depth else 1e-3).recording()))

    assert finding.evidence.observed == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("dtype", "severities"), [("float16", ["warning"]), ("bfloat16", []), ("float32", [])])
def test_only_fp16_weights_have_fp16s_range(made: Any, dtype: str, severities: list[str]) -> None:
    recording = made(state=lambda depth: 5_000.0 * (depth == 7) + 1)  # its absmax is 20,004
    recording.manifest = {"model": {"dtype": dtype}}

    assert [finding.severity for finding in range_of_fp16(Tables(recording.recording()))] == severities


def test_a_small_stream_in_fp16_is_no_warning(made: Any) -> None:
    recording = made()
    recording.manifest = {"model": {"dtype": "float16"}}

    assert range_of_fp16(Tables(recording.recording())) == []
