"""Hold what one sampled step gave: on its way to the host, and there."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .columns import Numbers
from .counted import Counted
from .host_copies import HostCopy
from .kernels import POWERS
from .parameter_numbers import ParameterNumbers
from .reading import Reading


@dataclass
class Sample:
    """What one sampled step gave, on the host.

    Attributes:
        step: its number.
        numbers: of each micro-batch.
        biases: sums of squares of the branches' output biases at the first forward; None without a forward.
        parameters: shape (parameters, 10); None where none was read.
        states: of the parameters' gradients, as of ``ParameterNumbers``.
        counted: what makes the rows of the tables between tokens.
    """

    step: int
    numbers: list[Numbers] = field(default_factory=list)
    biases: np.ndarray | None = None
    parameters: np.ndarray | None = None
    states: tuple[str | None, ...] = ()
    counted: list[Counted] = field(default_factory=list)


class Arriving:
    """What one sampled step gave, on its way to the host: the one copy a step."""

    def __init__(
        self, step: int, readings: list[Reading], parameters: ParameterNumbers | None, scale: Tensor | None = None
    ) -> None:
        """Start the copy; the readings may be used again afterwards. ``scale`` multiplied the loss."""
        self.step = step
        found = [part for r in readings for part in (r.sums.values, r.paths.pairs, r.rounding.energies, r.biases)]
        if parameters is not None:
            found.append(parameters.sums)
        self._channels = [sorted(reading.sums.channels) for reading in readings]
        self._widths = [{row: len(sums) for row, sums in reading.sums.channels.items()} for reading in readings]
        found += [r.sums.channels[row] for r, rows in zip(readings, self._channels, strict=True) for row in rows]
        found.append(torch.ones(()) if scale is None else scale)
        self._copy = HostCopy(found)
        self._copies = [list(reading.copies) for reading in readings]
        self._states = None if parameters is None else parameters.states

    @property
    def widths(self) -> list[dict[int, int]]:
        """Of each micro-batch, row of sums -> number of its channels, where their sums are kept."""
        found = []
        for widths, pairs in zip(self._widths, self._copies, strict=True):
            known = dict(widths)
            for to, source in reversed(pairs):
                if source in known:
                    known[to] = known[source]
            found.append(known)
        return found

    @property
    def has_parameters(self) -> bool:
        """Whether parameters were read."""
        return self._states is not None

    def sample(self, factor: float = 1.0) -> Sample:
        """Return the numbers, with gradients divided by the loss scale and by ``factor``; waits for the copy to end."""
        *arrays, scale = self._copy.arrays()
        n = 4 * len(self._copies)
        found = Sample(self.step)
        if self._states is not None:
            found.parameters, found.states = arrays[n], self._states
        means = iter(arrays[n + (self._states is not None) :])
        for micro_step, pairs in enumerate(self._copies):
            values, pairs_found, energies, bias = arrays[4 * micro_step : 4 * micro_step + 4]
            channels = {row: next(means) for row in self._channels[micro_step]}
            for to, source in reversed(pairs):  # a source may be filled by a later pair
                values[to] = values[source]
                if source in channels:
                    channels[to] = channels[source]
            divisor = float(scale) * factor
            if divisor != 1.0:
                values = values.copy()  # the arrays may be asked for again
                half = len(values) // 2  # forward, then backward
                values[half:, list(POWERS)] /= divisor ** np.array(list(POWERS.values()))
                pairs_found = pairs_found / divisor**2
            found.numbers.append(Numbers(self.step, micro_step, values, pairs_found, energies, channels))
            if micro_step == 0:
                found.biases = bias
        return found
