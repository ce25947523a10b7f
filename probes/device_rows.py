"""Keep rows of numbers on the device where they are computed, until one copy a device to the host."""

from __future__ import annotations

import torch
from torch import Tensor

N_ROWS = 1024  # rows a buffer; another is added when one is full


class DeviceRows:
    """Rows of a fixed width; ``add`` writes without waiting for the device, ``take`` waits once."""

    def __init__(self, width: int) -> None:
        """Hold rows of ``width`` numbers."""
        self._width = width
        self._buffers: dict[torch.device, list[Tensor]] = {}
        self._n: dict[torch.device, int] = {}
        self._order: list[tuple[torch.device, int, int]] = []

    def add(self, rows: Tensor) -> int:
        """Write ``rows``, shape (rows, width), and return their number in order of arrival, from 0."""
        n, device = rows.shape[0], rows.device
        buffers = self._buffers.setdefault(device, [])
        room = sum(len(buffer) for buffer in buffers)
        start = self._n.get(device, 0)
        if start + n > room:
            # A row never spans two buffers: what is left of a full one stays unused.
            start = room
            wide = torch.float32 if device.type == "mps" else torch.float64
            # Outside inference mode, or the buffer could not be written later.
            with torch.inference_mode(False):
                buffers.append(torch.empty(max(N_ROWS, n), self._width, dtype=wide, device=device))
            room += len(buffers[-1])
        first = room - len(buffers[-1])
        buffers[-1][start - first : start - first + n] = rows
        self._n[device] = start + n
        self._order.append((device, start, n))
        return len(self._order) - 1

    def take(self) -> list[Tensor]:
        """Return everything that was added, on the host, in order of arrival, and forget it; the buffers are kept."""
        host = {
            device: torch.cat(buffers)[: self._n[device]].cpu().to(torch.float64)
            for device, buffers in self._buffers.items()
            if self._n.get(device)
        }
        found = [host[device][start : start + n] for device, start, n in self._order]
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what was added; each device keeps one buffer for the next step."""
        self._order.clear()
        self._n.clear()
        for buffers in self._buffers.values():
            del buffers[1:]
