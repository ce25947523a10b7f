"""Lay one sampled step's numbers out in two vectors, of sums and of maxima, and read them back when ranks have joined theirs.

Ranks that train on the same data hold parts of what a module shows, or copies of it. Which of the two is not asked of any
name: each has a place of its own in the vectors, and what comes out the same on all of them are copies, anything else parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from .columns import Numbers
from .counted import Counted
from .kernels import ABSMAX, CHANNEL, COUNT, FIRST, FOURTH, NONFINITE, ROW_MEANS, SECOND, THIRD, ZEROS
from .parameter_numbers import N_PARTS, PEAK, STATES
from .sample import Arriving, Sample

ADDED = [COUNT, FIRST, SECOND, THIRD, FOURTH, ZEROS, NONFINITE, ROW_MEANS]
LARGEST = [ABSMAX, CHANNEL]
ALIKE = 1e-6  # of a sum's size: copies differ by rounding, if at all
Lengths = Mapping[str, Sequence[int]]  # name -> numbers that are added, numbers of which the largest counts


class Joining:
    """What a rank counts for, and the layout that ranks agreed upon.

    Attributes:
        agreed: by name, how many numbers are added and of how many the largest counts.
        dropped: tables with rows of which ranks hold parts that do not join.
    """

    def __init__(self, shares: np.ndarray, bias_shares: np.ndarray, shape: tuple[int, int], n_slots: int) -> None:
        """Start with nothing agreed upon.

        Args:
            shares: by how much the rank's sums over its part of each parameter count.
            bias_shares: of the branches' output biases.
            shape: number of rows of sums, and of adds.
            n_slots: how many ranks train on the same data.
        """
        self.agreed: dict[str, tuple[int, int]] = {}
        self.dropped: set[str] = set()
        self._shares, self._bias_shares = shares, bias_shares
        self._n_rows, self._n_adds = shape
        self._n_slots = n_slots
        self._has_parts: dict[str, np.ndarray] = {}
        self._n_heads: dict[str, int] = {}

    def lengths(self, arriving: Arriving, counted: Sequence[Counted]) -> dict[str, tuple[int, int]]:
        """Return by name how many numbers a step has, before they have arrived."""
        found: dict[str, tuple[int, int]] = {}
        for micro_step, widths in enumerate(arriving.widths):
            n_added = 1 + self._n_rows * len(ADDED) + 4 * self._n_adds
            found[f"micro {micro_step}"] = (n_added, self._n_rows * len(LARGEST))
            found |= {f"channels {micro_step} {row}": (width, 0) for row, width in widths.items()}
        if arriving.widths:
            found["biases"] = (len(self._bias_shares), 0)
        if arriving.has_parameters:
            n = len(self._shares)
            found["parameters"] = (n * (N_PARTS - 1), 2 * n)
        return found | self.names(counted)

    @staticmethod
    def names(counted: Sequence[Counted]) -> dict[str, tuple[int, int]]:
        """Return the same of rows between tokens."""
        return {_name(each): (1 + len(each.sums), len(each.peaks)) for each in counted}

    def agree(self, lengths: Sequence[Lengths]) -> bool:
        """Take in what all ranks have, in the order of ranks; return whether it fits together."""
        agreed = dict(self.agreed)  # steps that are on their way keep the layout that they left with
        for each in lengths:
            for name, (n_added, n_largest) in each.items():
                if agreed.setdefault(name, (n_added, n_largest)) != (n_added, n_largest):
                    return False
                table, place = json.loads(name[4:]) if name.startswith("row ") else ("", {})
                if table == "attention":
                    call = _call(place)
                    self._n_heads[call] = max(self._n_heads.get(call, 0), place["head"] + 1)
        self.agreed = agreed
        return True

    def vectors(self, sample: Sample | None, slot: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what is added and what the largest is taken of; without a sample nothing counts.

        The first number says how many ranks gave something.
        """
        parts = {} if sample is None else self._parts(sample)
        added, largest = [np.array([float(sample is not None)])], [np.zeros(0)]
        for name, (n_added, n_largest) in self.agreed.items():
            n = self._n_slots_of(name)
            a, b = np.zeros((n, n_added)), np.full((n, n_largest), -np.inf)
            if name in parts:
                a[slot % n], b[slot % n] = parts[name]
            added.append(a.ravel())
            largest.append(b.ravel())
        peaks = np.concatenate(largest)
        # A maximum knows no NaN; infinite is not finite either.
        return np.concatenate(added), np.where(np.isnan(peaks), np.inf, peaks)

    def sample(self, step: int, added: np.ndarray, largest: np.ndarray, layout: Lengths) -> Sample:
        """Return what all ranks together measured, from the joined vectors and what was agreed upon when they were laid out."""
        found = Sample(step)
        a, b = 1, 0
        parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for name, (n_added, n_largest) in layout.items():
            n = self._n_slots_of(name)
            parts[name] = (
                added[a : a + n * n_added].reshape(n, n_added),
                largest[b : b + n * n_largest].reshape(n, n_largest),
            )
            a, b = a + n * n_added, b + n * n_largest
        channels: dict[str, dict[int, np.ndarray]] = {}
        for name, (sums, _) in parts.items():
            if name.startswith("channels"):
                _, micro_step, row = name.split()
                channels.setdefault(micro_step, {})[int(row)] = sums
        for name, (sums, peaks) in parts.items():
            kind, _, rest = name.partition(" ")
            if kind == "micro" and sums[:, 0].any():
                found.numbers.append(self._numbers(step, int(rest), sums[:, 1:], peaks, channels.get(rest, {})))
            elif kind == "biases":
                found.biases = sums[0]
            elif kind == "parameters":
                found.parameters = np.insert(sums[0].reshape(-1, N_PARTS - 1), PEAK, peaks[0, : len(self._shares)], 1)
                found.states = tuple(STATES[max(0, int(each))] for each in peaks[0, len(self._shares) :].tolist())
            elif kind == "row" and sums[:, 0].any():
                found.counted += self._rows(name, rest, sums[:, 1:], peaks)
        if not found.numbers:
            found.biases = None
        found.numbers.sort(key=lambda each: each.micro_step)
        return found

    def not_joined(self) -> str:
        """Return in a sentence what was dropped."""
        return (
            f"Not measured: rows of {', '.join(sorted(self.dropped))}. Ranks with the same data hold parts of a sequence or of "
            "the vocabulary, and what is asked of pairs of tokens, or of all classes, is no sum of what it is of parts."
        )

    def _parts(self, sample: Sample) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        none = np.zeros(0)
        parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for each in sample.numbers:
            added = [np.ones(1), each.sums[:, ADDED].ravel(), each.pairs.ravel(), each.energies.ravel()]
            parts[f"micro {each.micro_step}"] = (np.concatenate(added), each.sums[:, LARGEST].ravel())
            parts |= {f"channels {each.micro_step} {row}": (sums, none) for row, sums in each.channels.items()}
        if sample.biases is not None:
            parts["biases"] = (sample.biases * self._bias_shares, none)
        if sample.parameters is not None:
            summed = np.delete(sample.parameters, PEAK, 1) * self._shares[:, None]
            states = np.array([STATES.index(state) for state in sample.states], dtype=float)
            parts["parameters"] = (summed.ravel(), np.concatenate([sample.parameters[:, PEAK], states]))
        for row in sample.counted:
            parts[_name(row)] = (np.array([1.0, *row.sums]), np.array(row.peaks, dtype=float))
        return parts

    def _n_slots_of(self, name: str) -> int:
        return 1 if name in ("biases", "parameters") else self._n_slots

    def _numbers(
        self, step: int, micro_step: int, added: np.ndarray, largest: np.ndarray, channels: Mapping[int, np.ndarray]
    ) -> Numbers:
        """Put the slots of one micro-batch together: of copies one, of parts their sum."""
        n, rows, adds = len(added), self._n_rows, self._n_adds
        ends = np.cumsum([rows * len(ADDED), 2 * adds])
        slots = np.zeros((n, rows, len(ADDED) + len(LARGEST)))
        slots[..., ADDED] = added[:, : ends[0]].reshape(n, rows, -1)
        slots[..., LARGEST] = largest.reshape(n, rows, -1)
        slots[..., LARGEST] = np.where(np.isneginf(slots[..., LARGEST]), 0.0, slots[..., LARGEST])
        # Norms make parts whose energies are alike: all sums are asked.
        second, fourth = (np.maximum(slots[:1, :, column], 0.0) for column in (SECOND, FOURTH))
        sizes = {FIRST: np.sqrt(slots[:1, :, COUNT] * second), THIRD: np.sqrt(second * fourth)}
        told = (COUNT, FIRST, SECOND, THIRD, FOURTH, ABSMAX)
        is_part = np.any([_differ(slots[..., column], sizes.get(column)) for column in told], axis=0)
        is_part = self._ever("points", is_part)
        _join_channels(slots, channels, is_part)
        sums = slots.sum(0)
        sums[:, LARGEST] = slots[..., LARGEST].max(0)
        values = np.where(is_part[:, None], sums, slots[0])
        for row in channels:
            values[row, CHANNEL] = slots[0, row, CHANNEL]
        pairs, energies = (part.reshape(n, adds, 2) for part in (added[:, ends[0] : ends[1]], added[:, ends[1] :]))
        return Numbers(step, micro_step, values, self._whole("pairs", pairs), self._whole("energies", energies))

    def _whole(self, kind: str, slots: np.ndarray) -> np.ndarray:
        is_part = self._ever(kind, _differ(slots[..., 0]) | _differ(slots[..., 1], np.abs(slots[:1, :, 0])))
        whole: np.ndarray = np.where(is_part[:, None], slots.sum(0), slots[0])
        return whole

    def _ever(self, kind: str, is_part: np.ndarray) -> np.ndarray:
        """Return what is or was in parts: what once was stays so, when its parts happen to be alike."""
        self._has_parts[kind] = self._has_parts.get(kind, np.zeros(len(is_part), dtype=bool)) | is_part
        return self._has_parts[kind]

    def _rows(self, name: str, text: str, sums: np.ndarray, peaks: np.ndarray) -> list[Counted]:
        """Return the rows of a table that the slots of one are: heads stand side by side, other parts do not join."""
        table, place = json.loads(text)
        is_part = bool(self._ever(name, np.array([bool(_differ(np.hstack([sums, peaks])).any())]))[0])
        if not is_part:
            return [Counted(table, place, tuple(sums[0].tolist()), tuple(peaks[0].tolist()))]
        if table != "attention" or place["head"] < 0:
            self.dropped.add(table)
            return []
        n_heads = self._n_heads[_call(place)]
        return [
            Counted(table, {**place, "head": place["head"] + slot * n_heads}, tuple(s.tolist()), tuple(p.tolist()))
            for slot, (s, p) in enumerate(zip(sums, peaks, strict=True))
        ]


def _name(row: Counted) -> str:
    return f"row {json.dumps([row.table, row.place], sort_keys=True)}"


def _call(place: Mapping[str, object]) -> str:
    """Return what the heads of one attention call share."""
    return json.dumps({key: value for key, value in place.items() if key != "head"}, sort_keys=True)


def _differ(slots: np.ndarray, size: np.ndarray | None = None) -> np.ndarray:
    """Return where slots, along axis 0, are not copies of the first, by more than rounding of ``size``."""
    first = slots[:1]
    scale = np.abs(first) if size is None else size
    with np.errstate(invalid="ignore"):
        is_close = np.abs(slots - first) <= ALIKE * scale
    is_same = is_close | (slots == first) | (np.isnan(slots) & np.isnan(first))
    differ: np.ndarray = ~is_same.all(0)
    return differ


def _join_channels(slots: np.ndarray, channels: Mapping[int, np.ndarray], is_part: np.ndarray) -> None:
    """Write, into the first slot, the largest mean of a channel over the tokens of all ranks.

    Parts with all tokens are parts of the channels; those with fewer are of the tokens, and their channels add up.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        tokens = {row: slots[:, row, COUNT] / max(1, sums.shape[1]) for row, sums in channels.items()}
        most = max((float(found.max()) for found in tokens.values()), default=0.0)
        for row, sums in channels.items():
            n = tokens[row]
            if is_part[row] and n.max() < most:
                slots[0, row, CHANNEL] = np.abs(sums.sum(0)).max(initial=0.0) / max(1.0, float(n.sum()))
            else:
                means = np.abs(sums).max(1, initial=0.0) / np.maximum(1.0, n)
                slots[0, row, CHANNEL] = means.max() if is_part[row] else means[0]
