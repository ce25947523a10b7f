"""Say which part is responsible: for a change of the loss, for the output, for a gradient.

Vocabulary. A *part* is what a question is asked about: a block, a branch, a parameter, a sample, a token. A *gate* is one number
beside a part, 1 where the model is as it is and 0 where the part is taken back: to the weights before an update, to what a branch
writes for the baseline, to a write of nothing. captum attributes to gates. By the chain rule that is the same as attributing to
every weight or activation behind the gate and adding up (integrated gradients and gradient times input are linear in the input's
direction), in the memory of one number a part.

*Completeness*: integrated gradients over the gates add up to what closing all of them changes; the error that is left is printed
beside every ranking. It is bookkeeping, not causality: parts that work together share what they do, in the proportion that the
straight path between the two ends gives them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blame import attribute_update
    from .knock_out import usefulness
    from .ledger import output_ledger
    from .result import Attribution
    from .shares import gradient_shares

__all__ = ["Attribution", "attribute_update", "gradient_shares", "output_ledger", "usefulness"]

_HOMES = {
    "Attribution": "result",
    "attribute_update": "blame",
    "gradient_shares": "shares",
    "output_ledger": "ledger",
    "usefulness": "knock_out",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
