"""What the command line is pointed at: a small model and a batch for it."""

from __future__ import annotations

from attribution_cases import TINY, ids_of, shaken
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor, nn


def built() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """Return them."""
    ids = ids_of()
    return shaken(ReferenceTransformer(Architecture(**TINY), seed=0)), (ids, ids)
