"""Turn what was read of the parameters, over many steps, into columns of the recording."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from .anatomy import Anatomy
from .biases import biased
from .parameters import BEFORE, BELOW, GRADIENT, NOW, PEAK, RATIO, ROOT, TURN, UPDATE, WEIGHT, ParameterTaps

Columns = dict[str, Any]


class ParameterColumns:
    """The table parameters of one model, and the rows of table activations for the biases."""

    def __init__(self, parameters: ParameterTaps, anatomy: Anatomy) -> None:
        """Lay out the columns that are the same at every step."""
        layout = parameters.layout()
        self._n = np.array([n for _, n, _, _ in layout], dtype=np.int64)
        self._constant = {
            "name": pa.array([name for name, _, _, _ in layout]),
            "stack": pa.array([place[0] for _, _, place, _ in layout]),
            "block": pa.array([place[1] for _, _, place, _ in layout]),
            "branch": pa.array([place[2] for _, _, place, _ in layout]),
            "role": pa.array([role for _, _, _, role in layout]),
            "n": pa.array(self._n),
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

    def of(self, steps: Sequence[int], sums: np.ndarray, has: np.ndarray) -> Columns:
        """Return the columns of table parameters.

        Args:
            steps: their numbers.
            sums: shape (steps, parameters, 10).
            has: which parameters had a gradient, shape (steps, parameters); NaN where that is not known.
        """
        is_known, has = ~np.isnan(has.astype(float)), has.astype(float) > 0
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
        state = np.where(has, np.where(sums[..., GRADIENT] == 0, "zero", "value"), np.where(is_known, "none", ""))
        columns: Columns = {name: pa.concat_arrays([values_] * len(steps)) for name, values_ in self._constant.items()}
        columns |= {name: pa.array(value.reshape(-1), from_pandas=True) for name, value in values.items()}
        columns["gradient_state"] = pa.array([each or None for each in state.reshape(-1).tolist()], pa.string())
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
