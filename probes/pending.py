"""Hold the numbers of sampled steps until there are enough of them to be worth writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .anatomy import Anatomy
from .columns import ActivationColumns, Numbers
from .parameter_columns import ParameterColumns
from .parameters import ParameterNumbers, ParameterTaps
from .sites import Layout
from .taps import Reading

MOST_STEPS, MOST_SECONDS = 16, 10.0  # held at most, whichever comes first
Append = Callable[[str, dict[str, Any]], None]


class Pending:
    """The sampled steps that are measured and not yet written; a kill loses these alone."""

    def __init__(self, anatomy: Anatomy, layout: Layout, parameters: ParameterTaps) -> None:
        """Lay out the tables."""
        self._activations = ActivationColumns(anatomy, layout)
        self._parameters = ParameterColumns(parameters, anatomy)
        self._numbers: list[Numbers] = []
        self._steps: list[int] = []
        self._read: list[ParameterNumbers] = []
        self._since = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether it is time to write."""
        return len(self._steps) >= MOST_STEPS or time.monotonic() - self._since > MOST_SECONDS

    def add(self, step: int, readings: list[Reading], parameters: ParameterNumbers | None) -> None:
        """Copy the numbers of one step to the host: the one copy a step."""
        for micro_step, reading in enumerate(readings):
            found = (reading.sums.values, reading.paths.products, reading.rounding.energies)
            self._numbers.append(Numbers(step, micro_step, *map(_on_host, found)))
        if parameters is not None:
            self._steps.append(step)
            self._read.append(parameters)

    def write(self, append: Append) -> None:
        """Hand everything held to ``append(table, columns)`` and forget it."""
        numbers, steps, read = self._numbers, self._steps, self._read
        self._numbers, self._steps, self._read, self._since = [], [], [], time.monotonic()
        if numbers:
            append("activations", self._activations.of(numbers))
            append("gradient_paths", self._activations.paths_of(numbers))
        if steps:
            append("activations", self._parameters.biases_of(steps, read))
            append("parameters", self._parameters.of(steps, read))


def _on_host(values: Tensor) -> Tensor:
    return values.to("cpu", torch.float64, copy=True)
