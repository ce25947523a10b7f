"""Statistics of any float32 values against numpy in float64, and what a sheet keeps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import oracle
from rheoscope.probes.statistics import Sheet, power_sums, statistics
from torch import Tensor


def measured(tensor: Tensor) -> dict[str, float]:
    """Return the statistics of one tensor."""
    return {name: float(values[0]) for name, values in statistics(power_sums(tensor)[None]).items()}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_statistics_of_any_float32_values_are_numpys(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    expected = oracle(tensor)
    found = measured(tensor)

    assert {name: found[name] for name in ("absmax", "zero_share", "nonfinite")} == pytest.approx(
        {name: expected[name] for name in ("absmax", "zero_share", "nonfinite")}, rel=0, nan_ok=True
    )
    size = expected["rms"]
    assert found["rms"] == pytest.approx(size, rel=5e-7, nan_ok=True)
    assert found["mean"] == pytest.approx(expected["mean"], abs=1e-6 * size, nan_ok=True)
    # Below a millionth of the RMS, spread is rounding of the moments and reads 0.
    assert found["std"] == pytest.approx(expected["std"], abs=2e-6 * size, rel=1e-3, nan_ok=True)
    if not math.isnan(found["kurtosis"]) and not math.isnan(expected["kurtosis"]):
        assert found["kurtosis"] == pytest.approx(expected["kurtosis"], rel=1e-2)


def test_zeros_have_no_spread_and_no_kurtosis() -> None:
    found = measured(torch.zeros(4, 4))

    assert found.pop("zero_share") == 1.0
    assert [name for name, value in found.items() if math.isnan(value)] == ["kurtosis", "mean_share", "channel_absmean"]
    assert {value for value in found.values() if not math.isnan(value)} == {0.0}


@pytest.mark.parametrize("value", [3.7, -1e-20, 1e30])
def test_a_constant_has_no_spread(value: float) -> None:
    found = measured(torch.full((1000,), value, dtype=torch.float32))

    assert found["std"] == 0.0
    assert math.isnan(found["kurtosis"])
    assert found["rms"] == pytest.approx(float(torch.tensor(abs(value))), rel=1e-6)


def test_one_element_is_its_own_mean() -> None:
    found = measured(torch.tensor([-2.5]))

    assert (found["mean"], found["std"], found["rms"], found["absmax"]) == (-2.5, 0.0, 2.5, 2.5)


def test_kurtosis_that_would_be_rounding_is_not_given() -> None:
    tensor = 1e4 + 1e-4 * torch.randn(1000, dtype=torch.float64)

    found = measured(tensor)

    assert math.isnan(found["kurtosis"])
    assert found["mean"] == pytest.approx(1e4)


def test_a_sheet_keeps_a_row_for_each_tensor_until_it_is_cleared() -> None:
    sheet = Sheet(3, torch.device("cpu"))
    sheet.measure(0, torch.ones(4))
    sheet.measure(2, torch.full((2, 2), 3.0))

    assert statistics(sheet.values)["rms"].nan_to_num().tolist() == [1.0, 0.0, 3.0]
    sheet.clear()
    assert not sheet.values.any()
