"""Arrow arrays made from buffers are those that pyarrow makes, and a training process does without pandas."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rheoscope.probes.arrow_arrays import arrow, nullable

CASES: list[tuple[Any, Any]] = [
    ([1, None, -(2**62)], pa.int64()),
    ([], pa.int64()),
    ([0.5, None, math.inf], pa.float64()),
    ([1, 2.5], pa.float64()),
    ([None, None], pa.float64()),
    ([True, None, False] * 5, pa.bool_()),
    (["a", None, "", "long ¨ and wide"], pa.string()),
    ([], pa.string()),
    (np.arange(6).reshape(3, 2)[:, 1], pa.int64()),
    (np.array([1.0, -2.0]), pa.float64()),
    (np.array([True, False, True]), pa.bool_()),
    (pa.array([1, None]), pa.float64()),
]


@pytest.mark.parametrize(("values", "kind"), CASES)
def test_arrays_are_pyarrows(values: Any, kind: Any) -> None:
    found = arrow(values, kind)

    found.validate(full=True)
    assert found.equals(pa.array(values, kind))


def test_nan_is_null_only_where_that_is_asked_for() -> None:
    values = np.array([1.0, math.nan, math.inf])

    assert nullable(values).to_pylist() == [1.0, None, math.inf]
    assert arrow(values, pa.float64()).null_count == 0
    assert math.isnan(arrow([1.0, math.nan, None], pa.float64()).to_pylist()[1])


@pytest.mark.parametrize(
    ("values", "kind"), [([2**70], pa.int64()), ([1.5], pa.int64()), (["a"], pa.float64()), ([1], pa.string())]
)
def test_what_does_not_fit_raises(values: Any, kind: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, AttributeError)):
        arrow(values, kind)


TRAINING = """
import sys
sys.path.insert(0, {tests!r})
import torch
from oracles import batch_of, gpt2, loss_of
from rheoscope.probes.recorder import attach
model = gpt2().train()
with attach(model, torch.optim.AdamW(model.parameters()), every=1, folder={folder!r}, strict=True) as probe:
    for _ in range(3):
        loss = loss_of(model, batch_of(model))
        loss.backward()
        probe.optimizer.step()
        probe.optimizer.zero_grad()
        probe.step(loss)
print("pandas" in sys.modules)
"""


def test_a_training_process_does_not_load_pandas(tmp_path: Path) -> None:
    code = TRAINING.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "run"))

    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "False"
