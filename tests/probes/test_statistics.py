"""Statistics against numpy in float64, for every dtype, size and oddity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rheoscope.probes.schema import STATISTICS
from rheoscope.probes.statistics import power_sums, statistics
from torch import Tensor


def measured(tensor: Tensor) -> dict[str, float]:
    """Return the statistics of one tensor."""
    found = statistics(power_sums(tensor)[None])
    assert tuple(found) == STATISTICS
    return {name: float(values[0]) for name, values in found.items()}


def expected(tensor: Tensor) -> dict[str, float]:
    """Return them from numpy in float64, central moments taken about the mean."""
    x = tensor.double().numpy().ravel()
    if not np.isfinite(x).all():
        return {**dict.fromkeys(STATISTICS, math.nan), "nonfinite": float((~np.isfinite(x)).sum())}
    variance = x.var()
    return {
        "mean": x.mean(),
        "std": x.std(),
        "rms": np.sqrt(np.square(x).mean()),
        "absmax": np.abs(x).max(),
        "kurtosis": float(((x - x.mean()) ** 4).mean() / variance**2) if variance > 0 else math.nan,
        "zero_share": float((x == 0).mean()),
        "nonfinite": 0.0,
    }


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 300.0, 1e30])
def test_statistics_of_a_tensor_are_numpys_in_float64(dtype: torch.dtype, scale: float) -> None:
    tensor = (torch.randn(7, 33, dtype=torch.float64) * scale + 0.3 * scale).to(dtype)
    if dtype == torch.float16 and scale == 1e30:
        tensor = tensor.clamp(-65504, 65504)

    if tensor.any():
        assert measured(tensor) == pytest.approx(expected(tensor), rel=1e-9)
    else:
        assert measured(tensor)["rms"] == 0.0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(width=32, allow_subnormal=False), min_size=1, max_size=40))
def test_statistics_of_any_float32_values_are_numpys(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    oracle = expected(tensor)
    found = measured(tensor)

    exact = ("rms", "absmax", "zero_share", "nonfinite")
    assert {name: found[name] for name in exact} == pytest.approx({n: oracle[n] for n in exact}, rel=1e-9, nan_ok=True)
    size = oracle["rms"]
    assert found["mean"] == pytest.approx(oracle["mean"], abs=1e-12 * size, rel=1e-9, nan_ok=True)
    # Below a millionth of the RMS, spread is rounding of the moments and reads 0.
    assert found["std"] == pytest.approx(oracle["std"], abs=1.01e-6 * size, rel=1e-3, nan_ok=True)
    if not math.isnan(found["kurtosis"]):
        assert found["kurtosis"] == pytest.approx(oracle["kurtosis"], rel=1e-2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_leaves_its_number_alone(bad: float) -> None:
    tensor = torch.randn(5, 5)
    tensor[2, 3] = bad

    assert measured(tensor) == pytest.approx({**dict.fromkeys(STATISTICS, math.nan), "nonfinite": 1.0}, nan_ok=True)


def test_zeros_have_no_spread_and_no_kurtosis() -> None:
    found = measured(torch.zeros(4, 4))

    assert found.pop("zero_share") == 1.0
    assert math.isnan(found.pop("kurtosis"))
    assert set(found.values()) == {0.0}


@pytest.mark.parametrize("value", [3.7, -1e-20, 1e30])
def test_a_constant_has_no_spread(value: float) -> None:
    found = measured(torch.full((1000,), value, dtype=torch.float32))

    assert found["std"] == 0.0
    assert math.isnan(found["kurtosis"])
    assert found["rms"] == pytest.approx(float(torch.tensor(abs(value))), rel=1e-6)


def test_one_element_is_its_own_mean() -> None:
    found = measured(torch.tensor([-2.5]))

    assert (found["mean"], found["std"], found["rms"], found["absmax"]) == (-2.5, 0.0, 2.5, 2.5)


def test_an_empty_tensor_has_no_statistics() -> None:
    found = measured(torch.empty(0, 3))

    assert all(math.isnan(value) for name, value in found.items() if name != "nonfinite")


def test_kurtosis_that_would_be_rounding_is_not_given() -> None:
    tensor = 1e4 + 1e-4 * torch.randn(1000, dtype=torch.float64)

    found = measured(tensor)

    assert math.isnan(found["kurtosis"])
    assert found["mean"] == pytest.approx(1e4)


def test_views_and_one_byte_floats_are_read_by_their_values() -> None:
    tensor = torch.randn(6, 8)
    small = torch.tensor([0.5, -1.5, 0.0]).to(torch.float8_e4m3fn)

    assert measured(tensor.T[::2]) == pytest.approx(expected(tensor.T[::2].clone()), rel=1e-9)
    assert measured(small)["rms"] == pytest.approx(math.sqrt(2.5 / 3))
    assert measured(small)["absmax"] == 1.5


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    tensor = torch.randn(10, 6)
    parts = power_sums(tensor[:4]) + power_sums(tensor[4:])
    whole = power_sums(tensor)

    additive = [0, 1, 2, 3, 4, 6, 7]
    assert parts[additive].tolist() == pytest.approx(whole[additive].tolist(), rel=1e-12, abs=1e-12)
