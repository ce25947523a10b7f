"""Real text that every Python installation carries: the standard library's own source, as bytes."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from rheoscope.probes.errors import LabError
from torch import Tensor

SIZE = 2_000_000  # bytes that are read, of about 12 MB
HELD_OUT = 0.1  # share at the end that is kept apart


@cache
def corpus(size: int = SIZE) -> Tensor:
    """Return the first ``size`` bytes of the standard library's source files in order of name, shape (size,), int64.

    Raises:
        LabError: this Python carries no source of its standard library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.glob("*.py") if path.is_file())
    text = bytearray()
    for path in files:
        text += path.read_bytes()
        if len(text) >= size:
            break
    if len(text) < 100_000:
        raise LabError(
            f"Expected the standard library's source in {str(folder)!r}, got {len(text)} bytes of it. "
            "Use a Python that carries its source."
        )
    return torch.frombuffer(text[:size], dtype=torch.uint8).to(torch.int64)


def batches(batch_size: int, length: int, seed: int = 0, *, held_out: bool = False) -> Iterator[Tensor]:
    """Yield batches of random windows without end, shape (batch_size, length + 1): inputs and their successors."""
    text = corpus()
    border = int(len(text) * (1 - HELD_OUT))
    text = text[border:] if held_out else text[:border]
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - length - 1, (batch_size,), generator=generator)
        yield torch.stack([text[start : start + length + 1] for start in starts.tolist()])
