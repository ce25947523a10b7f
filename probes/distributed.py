"""Let the ranks that a model is spread over add up what they measured: sums by one collective, maxima by another.

The group is their own and on the host, so that it neither mixes with the collectives of training nor waits for a device. A
rank that is lost is an error here and an event in the recording; nobody waits longer than the timeout that the user gave
``init_process_group``.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from .errors import ProbeError

LONGEST_TIMEOUT = timedelta(minutes=30)
ATTACH_SECONDS = 60.0  # the first rank that attaches waits so long for the last
_n_meetings: Counter[str] = Counter()


class LostError(ProbeError):
    """Another rank did not answer."""


class Reduction:
    """Arrays on their way through a collective."""

    def __init__(self, works: Sequence[Any], arrays: Sequence[np.ndarray]) -> None:
        """Hold what is under way; ``arrays`` are what it is written to."""
        self._works, self._arrays = list(works), list(arrays)

    @property
    def is_here(self) -> bool:
        """Whether nobody needs to wait."""
        return all(work.is_completed() for work in self._works)

    def arrays(self, patience: float | None = None) -> list[np.ndarray]:
        """Return the arrays, the same on every rank; waits for the others.

        Raises:
            LostError: a rank is gone, or did not come within the timeout or ``patience`` seconds.
        """
        try:
            for work in self._works:
                if patience is None:
                    work.wait()
                else:
                    work.wait(timedelta(seconds=patience))
        except RuntimeError as error:
            raise LostError(f"a rank did not answer ({str(error).splitlines()[0][:200]})") from error
        return self._arrays


class Ranks:
    """The ranks of one model, in one group.

    Attributes:
        index: this rank's place among them, from 0.
        n: how many they are.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        """Make the group: every one of ``ranks`` must come here.

        Raises:
            LostError: not all of them came, or the group cannot be made.
        """
        self.n, self.index = len(ranks), list(ranks).index(dist.get_rank())
        if not _are_all_here(ranks):
            raise LostError(f"not all of ranks {list(ranks)} attached a probe within {ATTACH_SECONDS:.0f} s")
        try:
            self._group = dist.new_group(
                list(ranks), timeout=_timeout(), backend="gloo", use_local_synchronization=True
            )
        except (RuntimeError, ValueError) as error:
            raise LostError(f"the ranks {list(ranks)} cannot make a group ({str(error)[:200]})") from error

    def reduce(self, sums: np.ndarray, peaks: np.ndarray | None = None) -> Reduction:
        """Start to add up ``sums`` over the ranks, and to take the largest of ``peaks``; both are overwritten.

        Every rank must come with arrays of the same lengths.

        Raises:
            LostError: the collective cannot be started.
        """
        wanted = [(sums, dist.ReduceOp.SUM)] + ([] if peaks is None else [(peaks, dist.ReduceOp.MAX)])
        try:
            works = [
                dist.all_reduce(torch.from_numpy(array), op, group=self._group, async_op=True) for array, op in wanted
            ]
        except (RuntimeError, ValueError) as error:  # or the user has destroyed all groups
            raise LostError(f"a rank did not answer ({str(error).splitlines()[0][:200]})") from error
        return Reduction(works, [array for array, _ in wanted])

    def gather(self, row: Sequence[float]) -> Reduction:
        """Start to hand a row of numbers to all ranks; the array has shape (ranks, numbers)."""
        slots = np.zeros((self.n, len(row)))
        slots[self.index] = row
        return self.reduce(slots)

    def exchange(self, value: Any) -> list[Any]:
        """Return what every rank came with, in the order of ranks; waits for them. The values are written as JSON.

        Raises:
            LostError: a rank did not come.
        """
        text = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
        lengths = self.gather([len(text)]).arrays()[0][:, 0].astype(int)
        slots = np.zeros((self.n, int(lengths.max())), dtype=np.uint8)
        slots[self.index, : len(text)] = text
        found = self.reduce(slots).arrays()[0]
        return [json.loads(row[:length].tobytes()) for row, length in zip(found, lengths, strict=True)]

    def tell(self, value: Any, source: int) -> Any:
        """Return what the rank ``source`` came with; waits for it. The value is written as JSON.

        Raises:
            LostError: a rank did not come.
        """
        text = json.dumps(value).encode() if self.index == source else b""
        length = int(self.gather([len(text)]).arrays()[0].sum())
        letters = np.zeros(length, dtype=np.uint8)
        letters[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        return json.loads(self.reduce(letters).arrays()[0].tobytes())

    def distinct(self, value: Any) -> list[Any]:
        """Return the different values that ranks came with, the first rank's first; waits for them.

        Raises:
            LostError: a rank did not come.
        """
        sums = self.exchange(zlib.crc32(json.dumps(value, sort_keys=True).encode()))
        return [self.tell(value, sums.index(each)) for each in dict.fromkeys(sums)]


def _are_all_here(ranks: Sequence[int]) -> bool:
    """Return whether all ranks come here soon: one answer for all of them, whoever is late."""
    store = dist.distributed_c10d._get_default_store()
    name = "rheoscope/" + "/".join(map(str, ranks))
    name += f":{_n_meetings[name]}"
    _n_meetings[name.rpartition(":")[0]] += 1
    if store.add(f"{name}/came", 1) == len(ranks):
        answer = store.compare_set(f"{name}/answer", "", "together")
    else:
        # Without this a rank that attaches alone would wait for the others as long as training may.
        try:
            store.wait([f"{name}/answer"], timedelta(seconds=ATTACH_SECONDS))
            answer = store.get(f"{name}/answer")
        except RuntimeError:
            answer = store.compare_set(f"{name}/answer", "", "alone")
    return bool(answer == b"together")


def _timeout() -> timedelta:
    """Return how long the process group of the training waits."""
    try:
        group = dist.distributed_c10d._get_default_group()
        backends = [group._get_backend(torch.device(kind)) for kind in ("cpu", "cuda") if _serves(group, kind)]
        return min([*(backend.options._timeout for backend in backends), LONGEST_TIMEOUT])
    except (AttributeError, RuntimeError):
        return LONGEST_TIMEOUT


def _serves(group: Any, kind: str) -> bool:
    return torch.device(kind) in group._device_types
