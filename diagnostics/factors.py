"""Tell the factor that the blocks of a class share exactly, and where none may be claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from rheoscope.probes.anatomy import Branch

from .frames import records
from .tables import Tables
from .thresholds import FEWEST_LOGIT_SCALES, LEAST_SIBLINGS, SCALE_ALIKE, SCALE_APART


@dataclass(frozen=True)
class Shared:
    """A factor that at least three quarters of the blocks have: ``value``, in ``n_alike`` of ``n`` blocks."""

    value: float
    n_alike: int
    n: int

    def is_apart(self, value: float, least: float = SCALE_APART) -> bool:
        """Return whether a block has another factor: one that is further off than ``least`` of it."""
        return abs(value - self.value) > least * abs(self.value)


def shared(values: Sequence[float]) -> Shared | None:
    """Return the factor that the blocks share; None where each has its own (learned, or a schedule), or they are too few."""
    if len(values) <= LEAST_SIBLINGS:
        return None
    middle = median(values)
    n_alike = sum(abs(value - middle) <= SCALE_ALIKE * abs(middle) for value in values)
    return Shared(middle, n_alike, len(values)) if n_alike * 4 >= len(values) * 3 else None


def shared_logit_factor(check: str, branches: Sequence[Branch], values: Sequence[float]) -> Shared | None:
    """Return the factor of the attention logits that the branches of a class share, by one of its two measures.

    None for ``logit_size`` where queries and keys are not normed, so that their size is no constant; and in few blocks, of which
    three may agree by chance.
    """
    seen = [branch.attention for branch in branches]
    is_normed = all(attention is not None and attention.qk_norm.endswith("norm") for attention in seen)
    if not seen or (check == "logit_size" and not is_normed) or len(values) <= FEWEST_LOGIT_SCALES:
        return None
    return shared(values)


def normed_otherwise(branches: Sequence[Branch]) -> set[int]:
    """Return the depths of branches with more or fewer norms behind them than most of their kind: that is told of the norms."""
    counts = [len(branch.output_norms) for branch in branches]
    usual = max(set(counts), key=counts.count, default=0)
    return {branch.depth for branch, count in zip(branches, counts, strict=True) if count != usual}


def write_factors(tables: Tables) -> dict[tuple[int, int, int], float]:
    """Return what is added over what the last projection gave, by stack, depth and term: of a check-up exactly.

    Of a run it is the ratio of the two tensors' sizes, where no norm and no dropout stand between.
    """
    exact = tables.identities[tables.identities["check"] == "write_scale"]
    found: dict[tuple[int, int, int], float] = {}
    n_terms: Counter[tuple[int, int]] = Counter()
    for row in records(exact[["stack", "depth", "observed"]]):
        place = int(row["stack"]), int(row["depth"])
        found[(*place, n_terms[place])] = float(row["observed"])
        n_terms[place] += 1
    if found:
        return found
    rows = tables.activations
    rows = rows[(rows["direction"] == "forward") & rows["site"].isin(["branch_output", "write"])]
    rows = rows.loc[rows["step"] == rows["step"].min(), ["stack", "depth", "site", "rms", "mean"]]
    normed = {(b.stack, b.depth) for b in tables.anatomy.branches if b.output_norms or b.write_dropout}
    seen: dict[tuple[int, int], dict[str, tuple[float, float]]] = {}
    for row in records(rows):
        seen.setdefault((int(row["stack"]), int(row["depth"])), {})[row["site"]] = float(row["rms"]), float(row["mean"])
    for (stack, depth), sizes in seen.items():
        if (stack, depth) not in normed and len(sizes) == 2 and sizes["branch_output"][0] > 0:
            (given, given_mean), (written, written_mean) = sizes["branch_output"], sizes["write"]
            found[stack, depth, 0] = written / given * (-1 if given_mean * written_mean < 0 else 1)
    return found
