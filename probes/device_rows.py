"""Keep rows of numbers on the device where they are computed, until one copy a device to the host."""

from __future__ import annotations

import torch
from torch import Tensor

_CPU = torch.device("cpu")
N_ROWS = 1024  # rows a buffer; another is added when one is full


class DeviceRows:
    """Rows of a fixed width; ``add`` writes without waiting for the device, ``take`` waits once."""

    def __init__(self, width: int) -> None:
        """Hold rows of ``width`` numbers."""
        self._width = width
        self._buffers: dict[torch.device, list[Tensor]] = {}
        self._ends: dict[torch.device, tuple[int, int]] = {}  # of a device's rows, and of its buffers
        self._order: list[tuple[torch.device, int, int]] = []

    def room(self, n: int, device: torch.device) -> Tensor:
        """Return the next ``n`` rows, shape (n, width), to be written to before the next ``take``."""
        buffer, first = self._next(n, device)
        return buffer[first : first + n]

    def address(self, n: int) -> int:
        """Return the address of the next ``n`` rows of float64 on the CPU, to be written to before the next ``take``."""
        buffer, first = self._next(n, _CPU)
        return buffer.data_ptr() + 8 * self._width * first

    def add(self, rows: Tensor) -> int:
        """Write ``rows``, shape (rows, width), and return their number in order of arrival, from 0."""
        self.room(rows.shape[0], rows.device).copy_(rows)
        return len(self._order) - 1

    def take(self) -> list[list[list[float]]]:
        """Return everything that was added, on the host, in order of arrival, and forget it; the buffers are kept."""
        host = {}
        for device, (n, _) in self._ends.items():
            buffers = self._buffers[device]
            host[device] = (buffers[0] if len(buffers) == 1 else torch.cat(buffers))[:n].tolist()
        found = [host[device][start : start + n] for device, start, n in self._order]
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what was added; each device keeps one buffer for the next step."""
        self._order.clear()
        for device, buffers in self._buffers.items():
            del buffers[1:]
            self._ends[device] = (0, buffers[0].shape[0])

    def _next(self, n: int, device: torch.device) -> tuple[Tensor, int]:
        """Return the buffer that holds the next ``n`` rows, and which of its rows is the first of them."""
        start, end = self._ends.get(device, (0, 0))
        if start + n > end:
            start, end = self._grow(n, device)
        buffer = self._buffers[device][-1]
        self._ends[device] = (start + n, end)
        self._order.append((device, start, n))
        return buffer, start - end + buffer.shape[0]

    def _grow(self, n: int, device: torch.device) -> tuple[int, int]:
        """Add a buffer, and return where its rows begin and end: a row never spans two, what is left stays unused."""
        buffers = self._buffers.setdefault(device, [])
        start = sum(buffer.shape[0] for buffer in buffers)
        wide = torch.float32 if device.type == "mps" else torch.float64
        # Outside inference mode, or the buffer could not be written later.
        with torch.inference_mode(False):
            buffers.append(torch.empty(max(N_ROWS, n), self._width, dtype=wide, device=device))
        return start, start + buffers[-1].shape[0]
