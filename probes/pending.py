"""Hold the numbers of sampled steps until there are enough of them to be worth writing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from .anatomy import Anatomy
from .columns import ActivationColumns
from .parameter_columns import ParameterColumns
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .reading import Reading
from .sample import Arriving, Sample
from .sites import Layout

MOST_STEPS, MOST_SECONDS = 16, 10.0  # held at most, whichever comes first
Append = Callable[[str, dict[str, Any]], None]


class Pending:
    """The sampled steps that are measured and not yet written; a kill loses these alone."""

    def __init__(self, anatomy: Anatomy, layout: Layout, parameters: ParameterTaps) -> None:
        """Lay out the tables."""
        self._activations = ActivationColumns(anatomy, layout)
        self._parameters = ParameterColumns(parameters, anatomy)
        self._held: list[Arriving | Sample] = []
        self._since = time.monotonic()

    @property
    def is_full(self) -> bool:
        """Whether it is time to write."""
        return len(self._held) >= MOST_STEPS or time.monotonic() - self._since > MOST_SECONDS

    def add(
        self, step: int, readings: list[Reading], parameters: ParameterNumbers | None, scale: Tensor | None = None
    ) -> None:
        """Start to copy the numbers of one step to the host: the one copy a step. ``scale`` multiplied the loss."""
        if readings or parameters is not None:
            self._held.append(Arriving(step, readings, parameters, scale))

    def hold(self, sample: Sample) -> None:
        """Keep numbers that are on the host."""
        self._held.append(sample)

    def write(self, append: Append) -> None:
        """Hand everything held to ``append(table, columns)`` and forget it."""
        held, self._held, self._since = self._held, [], time.monotonic()
        samples = [each.sample() if isinstance(each, Arriving) else each for each in held]
        numbers = [each for sample in samples for each in sample.numbers]
        biased = [sample for sample in samples if sample.biases is not None]
        read = [sample for sample in samples if sample.parameters is not None]
        tables: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        if numbers:
            tables.append(("activations", lambda: self._activations.of(numbers)))
            tables.append(("gradient_paths", lambda: self._activations.paths_of(numbers)))
        if biased:
            biases = np.stack([each.biases for each in biased if each.biases is not None])
            tables.append(("activations", lambda: self._parameters.biases_of([s.step for s in biased], biases)))
        if read:
            sums = np.stack([each.parameters for each in read if each.parameters is not None])
            states = np.array([each.states for each in read], dtype=object)
            tables.append(("parameters", lambda: self._parameters.of([s.step for s in read], sums, states)))
        errors = []
        for name, columns in tables:
            try:
                append(name, columns())
            except Exception as error:  # noqa: BLE001 - the other tables are kept
                errors.append(error)
        if errors:
            raise errors[0]
