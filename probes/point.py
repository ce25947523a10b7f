"""Say where a plain hook sees a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Point:
    """Where a plain hook sees a tensor.

    Attributes:
        module_path: the module's dotted path; "" is the model itself.
        side: whether the tensor enters or leaves the module.
        position: path into the module's arguments or outputs: integers and keys; () for a bare tensor.
        call: which of the module's calls within one forward, from 0.
    """

    module_path: str
    side: Literal["input", "output"]
    position: tuple[int | str, ...]
    call: int = 0
