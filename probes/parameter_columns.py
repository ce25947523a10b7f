"""Turn what was read of the parameters, over many steps, into columns of the recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .anatomy import Anatomy
from .arrow_arrays import arrow, nullable
from .biases import biased
from .parameter_numbers import BEFORE, BELOW, GRADIENT, NOW, PEAK, RATIO, ROOT, TURN, UPDATE, WEIGHT
from .parameters import ParameterTaps

Columns = dict[str, Any]


class ParameterColumns:
    """The table parameters of one model, and the rows of table activations for the biases."""

    def __init__(self, parameters: ParameterTaps, anatomy: Anatomy) -> None:
        """Lay out the columns that are the same at every step."""
        layout = parameters.layout()
        self._parameters = parameters
        self._n = np.array([n for _, n, _, _ in layout], dtype=np.int64)
        self._constant = {
            "name": arrow([name for name, _, _, _ in layout], pa.string()),
            "stack": arrow([place[0] for _, _, place, _ in layout], pa.int64()),
            "block": arrow([place[1] for _, _, place, _ in layout], pa.int64()),
            "branch": arrow([place[2] for _, _, place, _ in layout], pa.string()),
            "role": arrow([role for _, _, _, role in layout], pa.string()),
            "n": arrow(self._n, pa.int64()),
        }
        rows = {name: row for row, (name, _, _, _) in enumerate(layout)}
        with_bias = biased(anatomy, set(rows))
        self._n_bias = np.array([self._n[rows[str(branch.output_bias)]] for branch in with_bias], dtype=np.int64)
        self._bias_places: dict[str, list[Any]] = {
            "stack": [b.stack for b in with_bias],
            "block": [b.block for b in with_bias],
            "branch": [b.kind for b in with_bias],
            "depth": [b.depth for b in with_bias],
            "module_path": [b.output_bias for b in with_bias],
        }

    def of(self, steps: Sequence[int], sums: np.ndarray, states: np.ndarray) -> Columns:
        """Return the columns of table parameters.

        Args:
            steps: their numbers.
            sums: shape (steps, parameters, 10).
            states: of the gradients, as of ``ParameterNumbers``, shape (steps, parameters).
        """
        has = states == "some"
        means = sums / np.where(self._n > 0, self._n, np.nan)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            weight, update = np.sqrt(means[..., WEIGHT]), np.sqrt(means[..., UPDATE])
            ratio = np.where(weight > 0, update / weight, np.nan)
            size = np.sqrt(sums[..., NOW] * sums[..., BEFORE])
            turn = np.where(np.isnan(size), sums[..., TURN], np.where(size > 0, sums[..., TURN] / size, np.nan))
            values = {
                "weight_rms": weight,
                "gradient_rms": np.where(has, np.sqrt(means[..., GRADIENT]), np.nan),
                "gradient_absmax": np.where(has, sums[..., PEAK], np.nan),
                "update_rms": update,
                "update_ratio": ratio,
                "staleness": np.sqrt(means[..., RATIO]),
                "second_moment_rms": np.sqrt(means[..., ROOT]),
                "below_epsilon_share": means[..., BELOW],
                "direction_cosine": turn,
            }
        state = np.where(has, np.where(sums[..., GRADIENT] == 0, "zero", "value"), states)
        columns: Columns = {name: pa.concat_arrays([values_] * len(steps)) for name, values_ in self._constant.items()}
        columns |= {name: nullable(value.reshape(-1)) for name, value in values.items()}
        columns["gradient_state"] = arrow(state.reshape(-1).tolist(), pa.string())
        # A group may be given parameters while a run goes on: it is looked up as the rows are written, some steps later at most.
        columns["optimizer_group"] = arrow(self._parameters.groups() * len(steps), pa.int64())
        columns["step"] = np.repeat(steps, len(self._n))
        return columns

    def biases_of(self, steps: Sequence[int], energies: np.ndarray) -> Columns:
        """Return rows of table activations for the bias that each branch's last projection adds.

        Only its scale is known: the root mean square over channels, the same at every token.

        Args:
            steps: their numbers.
            energies: sums of squares at each step's first forward, shape (steps, biases).
        """
        k, n = len(steps), len(self._n_bias)
        columns: Columns = {name: values * k for name, values in self._bias_places.items()}
        columns["rms"] = np.sqrt(energies / np.maximum(1, self._n_bias)).reshape(-1)
        columns["n"] = np.tile(self._n_bias, k)
        columns["step"] = np.repeat(steps, n)
        columns |= {"micro_step": [0] * (k * n), "site": ["bias"] * (k * n), "call": [0] * (k * n)}
        columns["direction"] = ["forward"] * (k * n)
        return columns
