"""Turn the sums of many readings into columns of the recording at once: what is the same at every step is laid out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from .anatomy import Anatomy
from .arrow_arrays import arrow, nullable
from .kernels import COUNT, SECOND
from .schema import PLACE
from .sites import Layout
from .statistics import statistics
from .table_files import SCHEMAS

Columns = dict[str, Any]
_TYPES = {field.name: field.type for field in SCHEMAS["activations"]}


@dataclass(frozen=True)
class Numbers:
    """What one micro-batch gave, on the host.

    Attributes:
        step: the optimizer step it belongs to.
        micro_step: which forward of the step.
        sums: shape (2 x points, 10): forward, then backward.
        pairs: shape (branches, 2): energy of the gradient through the branch, and its product with that along the skip.
        energies: shape (branches, 2): of what each add rounded away, and of its write.
        channels: row of sums -> sum over tokens of each channel; only where ranks join theirs.
    """

    step: int
    micro_step: int
    sums: np.ndarray
    pairs: np.ndarray
    energies: np.ndarray
    channels: Mapping[int, np.ndarray] = field(default_factory=dict)


class ActivationColumns:
    """The tables activations and gradient_paths of one anatomy."""

    def __init__(self, anatomy: Anatomy, layout: Layout) -> None:
        """Lay out the columns that are the same for every micro-batch."""
        n = len(layout.points)
        rows = {point: row for row, point in enumerate(layout.points)}
        sites = layout.sites
        places = {
            name: [getattr(site, name) for site in sites] for name in ("stack", "block", "branch", "depth", "site")
        }
        places |= {
            "call": [site.point.call for site in sites],
            "module_path": [site.point.module_path for site in sites],
        }
        self._constant = {name: arrow(2 * values, _TYPES[name]) for name, values in places.items()}
        self._constant["direction"] = arrow(["forward"] * len(sites) + ["backward"] * len(sites), pa.string())
        self._index = np.array([rows[s.point] for s in sites] + [n + rows[s.point] for s in sites], dtype=np.int64)
        adds = {(branch.stack, branch.depth): index for index, branch in enumerate(anatomy.branches)}
        written = [adds[s.stack, s.depth] if s.site == "write" else -1 for s in sites]
        self._written = np.array(written + [-1] * len(sites), dtype=np.int64)
        # Of a copy the gradient is a part of the tensor's own: it is not recorded as the whole.
        self._is_whole = np.array([True] * len(sites) + [not s.is_partial for s in sites], dtype=bool)
        self._paths = _PathColumns(anatomy, {point: n + row for point, row in rows.items()})

    def of(self, numbers: Sequence[Numbers]) -> Columns:
        """Return the columns of table activations; a site that was not seen has no row."""
        sums = np.stack([each.sums for each in numbers])[:, self._index]
        flat = sums.reshape(-1, sums.shape[-1])
        seen = (flat[:, COUNT] > 0) & np.tile(self._is_whole, len(numbers))
        size = len(self._index)
        columns: Columns = {name: _repeated(values, len(numbers), seen) for name, values in self._constant.items()}
        columns["n"] = flat[seen, COUNT].astype(np.int64)
        found = statistics(torch.from_numpy(flat[seen]))
        columns |= {name: nullable(value.numpy()) for name, value in found.items()}
        columns["step"] = np.repeat([each.step for each in numbers], size)[seen]
        columns["micro_step"] = np.repeat([each.micro_step for each in numbers], size)[seen]
        lost = np.stack([each.energies for each in numbers])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(lost[..., 1] > 0, lost[..., 0] / lost[..., 1], np.nan)
        shares = np.where(self._written >= 0, share[:, self._written], np.nan)
        columns["rounded_share"] = nullable(shares.reshape(-1)[seen])
        return columns

    def paths_of(self, numbers: Sequence[Numbers]) -> Columns:
        """Return the columns of table gradient_paths; an add of which nothing is known has no row."""
        return self._paths.of(numbers)


class _PathColumns:
    def __init__(self, anatomy: Anatomy, back: dict[Any, int]) -> None:
        """Look up the rows of both ends of every add."""
        branches = anatomy.branches
        columns = {name: [getattr(b, "kind" if name == "branch" else name) for b in branches] for name in PLACE}
        self._constant = {name: arrow(values, _TYPES[name]) for name, values in columns.items()}
        self._before = np.array([back.get(anatomy.before(i), -1) for i in range(len(branches))], dtype=np.int64)
        self._total = np.array([back.get(b.added, -1) for b in branches], dtype=np.int64)
        self._state = np.array([back.get(b.whole("state"), -1) for b in branches], dtype=np.int64)
        self._scale = np.array([b.scale for b in branches])
        self._is_identity = np.array([b.sum is None for b in branches], dtype=bool)

    def of(self, numbers: Sequence[Numbers]) -> Columns:
        if not len(self._scale):
            return {"step": np.array([], dtype=np.int64)}
        sums = np.stack([each.sums for each in numbers])[..., [COUNT, SECOND]]
        branch, product = np.moveaxis(np.stack([each.pairs for each in numbers]), -1, 0)
        n, _ = np.moveaxis(self._at(sums, self._before), -1, 0)
        n_total, total = np.moveaxis(self._at(sums, self._total), -1, 0)
        n_state, state = np.moveaxis(self._at(sums, self._state), -1, 0)
        skip = self._scale**2 * total
        with np.errstate(divide="ignore", invalid="ignore"):
            known = (n > 0) & np.isfinite(product) & np.isfinite(branch) & np.isfinite(skip)
            size = np.sqrt(skip * branch)
            gain = np.where((n_state > 0) & (n_total > 0) & (state > 0), np.sqrt(total / state), np.nan)
            gain = np.abs(self._scale) * np.where(self._is_identity, 1.0, gain)
            values = {
                "skip_gain": gain,
                "skip_rms": np.where(known, np.sqrt(skip / n), np.nan),
                "branch_rms": np.where(known, np.sqrt(branch / n), np.nan),
                "cosine": np.where(known & (size > 0), product / size, np.nan),
            }
        kept = (np.isfinite(gain) | known).reshape(-1)
        columns: Columns = {name: _repeated(array, len(numbers), kept) for name, array in self._constant.items()}
        columns |= {name: nullable(value.reshape(-1)[kept]) for name, value in values.items()}
        columns["step"] = np.repeat([each.step for each in numbers], len(self._scale))[kept]
        columns["micro_step"] = np.repeat([each.micro_step for each in numbers], len(self._scale))[kept]
        return columns

    @staticmethod
    def _at(sums: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return count and energy at ``index``, NaN where it is -1: shape (micro-batches, branches, 2)."""
        return np.where((index >= 0)[:, None], sums[:, index], np.nan)


def _repeated(values: Any, times: int, kept: np.ndarray) -> Any:
    return pa.concat_arrays([values] * times).filter(arrow(kept, pa.bool_()))
