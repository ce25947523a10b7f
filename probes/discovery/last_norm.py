"""Tell a post-norm behind the last sum of a stack from the model's final norm."""

from __future__ import annotations

from .dataflow import Dataflow
from .links import Link


def describe_last(flow: Dataflow, links: list[Link]) -> None:
    """Decide whether a norm behind the last sum is part of the stream (post-norm) or the model's final norm.

    It is what stands behind the sum of the branch before that reads as the last one does, not normed.
    """
    last = links[-1]
    last.state = last.add.result
    alike = [link for link in links if not any(normed for _, normed, _ in link.entries)]
    if len(alike) < 2 or alike[-1] is not last or not alike[-2].skip_norms:
        return
    waiting = [last.add.result]
    for _ in range(8):
        readers = [reader for value in waiting for reader in flow.consumers.get(value, [])]
        waiting = []
        for value in (value for reader in readers for value in reader.outputs):
            kinds = [kind for _, kind in flow.light_parents.get(value, [])]
            if "norm" in kinds:
                last.skip_norms, last.state = [value], value
                return
            if {"view", "dropout", "center", "shift"} & set(kinds):
                waiting.append(value)
