"""The choices of the reference transformer contradict each other only with a clear error."""

from __future__ import annotations

import pytest
from rheoscope.lab.architecture import Architecture
from rheoscope.probes.errors import LabError


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"norm_placement": "sideways"}, "Expected norm_placement to be one of .*, got 'sideways'. Pass one of these."),
        ({"norm_kind": "batchnorm"}, "Expected norm_kind to be one of .*, got 'batchnorm'. Pass one of these."),
        ({"activation": "tanh"}, "Expected activation to be one of .*, got 'tanh'. Pass one of these."),
        ({"init": "zeros"}, "Expected init to be one of .*, got 'zeros'. Pass one of these."),
        ({"n_blocks": 0}, "Expected n_blocks >= 1, got 0. Pass a positive number."),
        (
            {"width": 10, "n_heads": 4},
            "Expected n_heads to divide width, got n_heads=4 and width=10. Pass n_heads among",
        ),
        (
            {"is_parallel": True, "norm_placement": "post"},
            "Expected is_parallel only with norm_placement='pre', got 'post'",
        ),
        ({"dropout": 1.0}, "Expected 0 <= dropout < 1, got 1.0. Pass a share."),
    ],
)
def test_a_contradiction_is_named_with_what_to_do(choice: dict[str, object], words: str) -> None:
    with pytest.raises(LabError, match=words):
        Architecture(**choice)  # type: ignore[arg-type]


def test_an_mlp_has_four_times_the_width_unless_told_otherwise() -> None:
    assert (Architecture(width=16).hidden, Architecture(width=16, mlp_width=40).hidden) == (64, 40)
