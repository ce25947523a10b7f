"""Discovery is cheap, and its cost grows with the number of blocks, not with its square."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
from rheoscope.probes.discovery import discover
from rheoscope.probes.discovery.trace import trace
from rheoscope.probes.untouched import untouched


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / "discovery_depth.py"
    spec = importlib.util.spec_from_file_location("discovery_depth", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["discovery_depth"] = module
    spec.loader.exec_module(module)
    return module


cost = _benchmark()


def test_a_traced_forward_costs_at_most_five_plain_ones_and_half_a_second() -> None:
    model, ids = cost.model(12).eval(), torch.randint(0, 20, (4, 128))
    with torch.no_grad():
        plain = cost.seconds(lambda: model(ids))

    with untouched(model, training=False):
        traced = cost.seconds(lambda: trace(model, ids))

    assert traced <= 5 * plain + 0.5


def test_eight_times_the_blocks_cost_less_than_twenty_times_as_much() -> None:
    ids = torch.randint(0, 20, (1, 16))
    few, many = cost.model(12, 32), cost.model(96, 32)

    short, long = (cost.seconds(lambda m=m: discover(m, ids)) for m in (few, many))  # type: ignore[misc]

    # Eight times for a linear cost; a quadratic one would take 64 times. Room for a busy machine.
    assert long < 20 * short
