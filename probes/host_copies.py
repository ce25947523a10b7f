"""Bring numbers from a device to the host in one copy, for which nobody waits until they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .kernels import by_torch


class HostCopy:
    """Tensors of one device on their way to the host.

    On CUDA the copy goes to pinned memory and an event marks its end; elsewhere it is made at once.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Start the copy; the tensors may be written to afterwards."""
        self._shapes = [tuple(tensor.shape) for tensor in tensors]
        self._event: Any = None
        with torch.inference_mode(False), torch.no_grad():
            device = tensors[0].device
            wide = by_torch.wide_dtype(device)
            parts = [tensor.reshape(-1) for tensor in tensors]
            flat = torch.cat([t if t.dtype == wide and t.device == device else t.to(device, wide) for t in parts])
            if flat.is_cuda:
                self._host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
                self._host.copy_(flat, non_blocking=True)
                self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._event.record(torch.cuda.current_stream(flat.device))
            else:
                self._host = flat.cpu()

    @property
    def is_here(self) -> bool:
        """Whether the values can be read without waiting."""
        return self._event is None or bool(self._event.query())

    def arrays(self) -> list[np.ndarray]:
        """Return the values in float64, in the order and shapes of the tensors; waits for the copy to end."""
        if self._event is not None:
            self._event.synchronize()
        values, start, found = self._host.to(torch.float64).numpy(), 0, []
        for shape in self._shapes:
            end = start + int(np.prod(shape))
            found.append(values[start:end].reshape(shape))
            start = end
        return found


class ScalarCopies:
    """Named scalars of any devices on their way to the host, those of the CPU at once; each None stays None."""

    def __init__(self, scalars: Mapping[str, Tensor | None]) -> None:
        """Start the copies; the tensors may be written to afterwards."""
        by_device: dict[torch.device, dict[str, Tensor]] = {}
        self._here: dict[str, float | None] = {}
        for name, value in scalars.items():
            if value is None or value.is_cpu:
                self._here[name] = None if value is None else float(value)
            else:
                by_device.setdefault(value.device, {})[name] = value
        self._copies = [(list(found), HostCopy(list(found.values()))) for found in by_device.values()]

    @property
    def is_here(self) -> bool:
        """Whether all of them can be read without waiting."""
        return all(copy.is_here for _, copy in self._copies)

    def values(self) -> dict[str, float | None]:
        """Return the scalars by name; waits for the copies to end."""
        found = dict(self._here)
        for names, copy in self._copies:
            found |= {name: float(value.reshape(())) for name, value in zip(names, copy.arrays(), strict=True)}
        return found
