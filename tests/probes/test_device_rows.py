"""Rows come back in the order in which they were asked for, however many there are."""

from __future__ import annotations

import ctypes

import torch
from rheoscope.probes.device_rows import N_ROWS, DeviceRows


def test_rows_come_back_in_order_over_several_buffers_and_steps() -> None:
    rows = DeviceRows(2)
    for step in range(3):
        expected = []
        for index in range(3 * N_ROWS // 7):
            n = 1 + index % 7
            part = torch.full((n, 2), float(1000 * step + index), dtype=torch.float64)
            if index % 3:
                rows.add(part)
            else:
                rows.room(n, part.device).copy_(part)
            expected.append(part.tolist())

        assert rows.take() == expected
        assert rows.take() == []


def test_an_address_is_that_of_the_next_rows() -> None:
    rows = DeviceRows(3)
    rows.add(torch.zeros(2, 3))

    ctypes.memmove(rows.address(1), (ctypes.c_double * 3)(1.0, 2.0, 3.0), 24)
    rows.add(torch.ones(1, 3))

    assert rows.take() == [[[0.0] * 3] * 2, [[1.0, 2.0, 3.0]], [[1.0] * 3]]


def test_rows_of_float32_are_widened() -> None:
    rows = DeviceRows(1)
    rows.add(torch.tensor([[0.1]], dtype=torch.float32))

    assert rows.take() == [[[float(torch.tensor(0.1, dtype=torch.float32))]]]
