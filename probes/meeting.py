"""Let ranks agree, once, on what they measure: one anatomy, and which of them train on the same data."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch

from .anatomy import Anatomy
from .batches import tensors
from .distributed import LostError, Ranks
from .sites import layout
from .spread import Spread

MOST_BYTES = 2**20  # of a batch, that are compared


class Meeting:
    """What the ranks of one model know of each other.

    Attributes:
        n_batches: how many different batches they train on at a time.
        n_slots: how many ranks train on the same batch.
        slot: this rank's place among those.
    """

    def __init__(self, ranks: Ranks, spread: Spread) -> None:
        """Assume that every rank trains on a batch of its own."""
        self.n_batches, self.n_slots, self.slot = ranks.n, 1, 0
        self._ranks, self._spread = ranks, spread

    def anatomy(
        self, found: Anatomy | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Anatomy | None, list[tuple[str, str]]]:
        """Return the anatomy that all go on with, None where no rank found one, and what is to be told.

        Waits for the others. Which ranks were given the same batch is compared, not asked of a mesh's names.

        Args:
            found: what this rank found.
            args: of the forward that begins.
            kwargs: of the forward that begins.

        Raises:
            LostError: a rank did not come, or ranks hold different blocks.
        """
        mine = None if found is None else zlib.crc32(repr(layout(found).points).encode())
        batch = fingerprint(args, kwargs)
        said = self._ranks.exchange([mine, batch])
        told = self._group([each[1] for each in said])
        known = [index for index, each in enumerate(said) if each[0] is not None]
        if not known:
            return None, told
        if len({said[index][0] for index in known}) > 1:
            raise LostError(
                "they found different blocks: of a pipeline of its own, tell each rank its stage by stage=(index, number)"
            )
        text = self._ranks.tell(found.to_json() if found is not None else None, known[0])
        return Anatomy.from_json(text), told

    def _group(self, batches: list[int]) -> list[tuple[str, str]]:
        """Find out who trains on the same batch."""
        index, n = self._ranks.index, self._ranks.n
        same = {batch: [rank for rank, other in enumerate(batches) if other == batch] for batch in batches}
        sizes = {len(ranks) for ranks in same.values()}
        if sizes == {1}:
            return []
        twice = next(ranks for ranks in same.values() if len(ranks) > 1)
        names = " and ".join(str(self._spread.ranks[rank]) for rank in twice[:2])
        if self._spread.has_own_data:
            return [
                (
                    "same_batch",
                    f"Expected every rank to train on data of its own, got the same first batch on ranks {names}. Give the "
                    "loader a DistributedSampler, unless this was meant.",
                )
            ]
        if len(sizes) > 1:
            return [
                (
                    "ranks_unclear",
                    f"Which ranks train on the same data cannot be known: ranks {names} were given the same first batch, others "
                    "batches of their own. All are taken to have data of their own.",
                )
            ]
        self.n_slots = sizes.pop()
        self.n_batches, self.slot = n // self.n_slots, same[batches[index]].index(index)
        return []


def fingerprint(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Return a number that differs between forwards with different tensors."""
    found = 0
    for position, tensor in tensors((args, dict(kwargs))):
        held = tensor.detach().reshape(-1)
        held = held[: max(1, MOST_BYTES // max(1, held.element_size()))].cpu().contiguous().view(torch.uint8)
        found = zlib.crc32(held.numpy().tobytes(), zlib.crc32(repr((position, tensor.shape)).encode(), found))
    return found
