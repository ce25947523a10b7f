"""Measure the largest memory that a stretch of work takes: allocated on a CUDA device, resident of the process on Linux."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The largest memory since ``begin``."""

    def __init__(self, device: torch.device) -> None:
        """Look at ``device``."""
        self._device = device

    def begin(self) -> None:
        """Forget what was largest before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError):
            RESET.write_text("5")

    def end(self) -> int | None:
        """Return the largest since, in bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        try:
            lines = STATUS.read_text().splitlines() if RESET.exists() else []
        except OSError:
            return None
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
