"""Hold the numbers of sampled steps until there are enough of them to be worth writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .anatomy import Anatomy
from .columns import ActivationColumns, Numbers
from .host_copies import HostCopy
from .kernels import POWERS
from .parameter_columns import ParameterColumns
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .reading import Reading
from .sites import Layout

MOST_STEPS, MOST_SECONDS = 16, 10.0  # held at most, whichever comes first
Append = Callable[[str, dict[str, Any]], None]


class Pending:
    """The sampled steps that are measured and not yet written; a kill loses these alone."""

    def __init__(self, anatomy: Anatomy, layout: Layout, parameters: ParameterTaps) -> None:
        """Lay out the tables."""
        self._activations = ActivationColumns(anatomy, layout)
        self._parameters = ParameterColumns(parameters, anatomy)
        self._held: list[tuple[int, HostCopy, list[list[tuple[int, int]]], ParameterNumbers | None]] = []
        self._since = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether it is time to write."""
        return len(self._held) >= MOST_STEPS or time.monotonic() - self._since > MOST_SECONDS

    def add(
        self, step: int, readings: list[Reading], parameters: ParameterNumbers | None, scale: Tensor | None = None
    ) -> None:
        """Start to copy the numbers of one step to the host: the one copy a step. ``scale`` multiplied the loss."""
        found = [part for r in readings for part in (r.sums.values, r.paths.pairs, r.rounding.energies, r.biases)]
        if parameters is not None:
            found.append(parameters.sums)
        if found:
            found.append(torch.ones(()) if scale is None else scale)
            self._held.append((step, HostCopy(found), [list(r.copies) for r in readings], parameters))

    def write(self, append: Append) -> None:
        """Hand everything held to ``append(table, columns)`` and forget it."""
        held, self._held, self._since = self._held, [], time.monotonic()
        numbers: list[Numbers] = []
        steps: list[int] = []
        biases: list[np.ndarray] = []
        bias_steps: list[int] = []
        sums: list[np.ndarray] = []
        states: list[tuple[str | None, ...]] = []
        for step, copy, copies, parameters in held:
            *arrays, scale = copy.arrays()
            for micro_step, pairs in enumerate(copies):
                values, pairs_found, energies, bias = arrays[4 * micro_step : 4 * micro_step + 4]
                for to, source in reversed(pairs):  # a source may be filled by a later pair
                    values[to] = values[source]
                if scale != 1.0:
                    half = len(values) // 2  # forward, then backward
                    values[half:, list(POWERS)] /= scale ** np.array(list(POWERS.values()))
                    pairs_found = pairs_found / scale**2
                numbers.append(Numbers(step, micro_step, values, pairs_found, energies))
                if micro_step == 0:
                    biases.append(bias)
                    bias_steps.append(step)
            if parameters is not None:
                steps.append(step)
                sums.append(arrays[-1])
                states.append(parameters.states)
        tables: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        if numbers:
            tables.append(("activations", lambda: self._activations.of(numbers)))
            tables.append(("gradient_paths", lambda: self._activations.paths_of(numbers)))
            tables.append(("activations", lambda: self._parameters.biases_of(bias_steps, np.stack(biases))))
        if steps:
            whole, of_gradients = np.stack(sums), np.array(states, dtype=object)
            tables.append(("parameters", lambda: self._parameters.of(steps, whole, of_gradients)))
        errors = []
        for name, columns in tables:
            try:
                append(name, columns())
            except Exception as error:  # noqa: BLE001 - the other tables are kept
                errors.append(error)
        if errors:
            raise errors[0]
