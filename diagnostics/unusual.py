"""Say what all blocks share and few models do: a design, or a fault of the class that they share. Never an alarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from statistics import median

from rheoscope.probes.anatomy import Branch, Stack

from .finding import Evidence, Finding
from .frames import records
from .tables import Tables
from .thresholds import EPSILON_UNUSUAL, LEAST_SIBLINGS, LOGIT_SCALE_ALIKE, SCALE_APART


def unusual(tables: Tables) -> list[Finding]:
    """Report designs that few models have, with what they do and who has them on purpose."""
    found = []
    for stack in tables.anatomy.stacks:
        if stack.n_blocks >= LEAST_SIBLINGS:
            name = tables.stack_name(stack.index)
            for sentence, evidence, remedy in (
                *_norms(tables, stack, name),
                *_adds(stack, name),
                *_logits(tables, stack, name),
            ):
                found.append(_finding(stack, sentence, evidence, remedy))
    return found


Told = tuple[str, Evidence, str]


def _norms(tables: Tables, stack: Stack, name: str) -> Iterator[Told]:
    for kind in dict.fromkeys(branch.kind for branch in stack.branches if branch.parameters):
        mine = [branch for branch in stack.branches if branch.kind == kind]
        bare = [branch for branch in mine if branch.placement == "none"]
        if len(bare) * 2 >= len(mine):
            yield (
                f"No norm stands before, behind or after {len(bare)} of the {len(mine)} {kind} branches{name}: nothing bounds "
                "what they read.",
                Evidence(
                    "branches with a norm",
                    float(len(mine) - len(bare)),
                    float(len(mine)),
                    "nearly all transformers norm",
                ),
                "Fine where every branch starts at zero (ReZero, Fixup); otherwise look at the norms' class and epsilon.",
            )
        half = [branch for branch in mine if branch.placement == "unknown" and branch.terms and branch.input_norms]
        if len(half) * 2 >= len(mine):
            yield (
                f"Only a part of what {len(half)} of the {len(mine)} {kind} branches{name} read is normed.",
                Evidence(
                    "branches read through norms", float(len(mine) - len(half)), float(len(mine)), "one norm for all"
                ),
                "Look at which of the parallel branches reads the state itself.",
            )
        weak = [b for b in mine if b.placement in ("pre", "double") and len(b.input_norms) < max(1, len(b.inputs))]
        if len(weak) * 2 >= len(mine):
            yield (
                f"Before {len(weak)} of the {len(mine)} {kind} branches{name} a norm stands that no module shows, or one that "
                "does not act as a norm on what it reads.",
                Evidence(
                    "branches whose norms act", float(len(mine) - len(weak)), float(len(mine)), "a norm gives its gain"
                ),
                "Fine where the norm is a plain function; otherwise look at its epsilon (1e-5 or 1e-6 is usual) and its gain.",
            )
        kinds = Counter(branch.placement for branch in mine)
        if min(kinds.values()) > 1 and len(kinds) > 1:
            words = " and ".join(f"{placement} in {n}" for placement, n in kinds.most_common())
            yield (
                f"The {kind} branches{name} are normed in different places: {words} blocks.",
                Evidence("placements", float(len(kinds)), 1.0, "one placement in nearly all transformers"),
                "Fine where the blocks alternate on purpose; otherwise look for a norm that is missing in some of them.",
            )
        depths = {branch.depth for branch in mine if branch.placement in ("pre", "double")}
        rows = tables.sites("branch_input")
        rows = rows[(rows["stack"] == stack.index) & rows["depth"].isin(depths) & (rows["step"] == rows["step"].min())]
        norms = tables.norms
        norms = norms[(norms["role"] == "input") & (norms["step"] == norms["step"].min()) & norms["depth"].isin(depths)]
        gains = norms.loc[norms["stack"] == stack.index, "gain_rms"].dropna()
        given = float(rows["rms"].median()) if len(rows) else 1.0
        least = EPSILON_UNUSUAL * (float(gains.median()) if len(gains) else 1.0)
        if given < least:
            yield (
                f"What the {kind} branches{name} read from their norms has an RMS of {given:.2g}: the norms' epsilon is large "
                "beside what they read, or their gains are small.",
                Evidence("RMS of what a norm gives", given, 1.0, "a norm gives its gain", EPSILON_UNUSUAL),
                "Look at the norms' epsilon (1e-5 or 1e-6 is usual), and at the size of the embedding.",
            )


def _adds(stack: Stack, name: str) -> Iterator[Told]:
    idle = [branch for branch in stack.branches if not branch.parameters]
    if len({branch.block for branch in idle}) * 4 >= stack.n_blocks * 3:
        yield (
            f"Every block{name} adds something to the stream that has no parameters, such as a multiple of the stream.",
            Evidence("adds without parameters", float(len(idle)), 0.0, "a branch has weights"),
            "Look at how the block adds its input to its output.",
        )
    scales = [branch.scale for branch in stack.branches if branch.parameters and not branch.is_gated_skip]
    middle = median(scales) if scales else 1.0
    if abs(middle - 1) > SCALE_APART:
        yield (
            f"The skips{name} are multiplied by {middle:.4g} at every add.",
            Evidence("factor of the skip", middle, 1.0, "an identity in most models", SCALE_APART),
            "DeepNorm does so on purpose (Wang et al. 2022), and some multipliers of the stream; otherwise look at the add.",
        )


def _logits(tables: Tables, stack: Stack, name: str) -> Iterator[Told]:
    rows = tables.identities
    rows = rows[(rows["check"] == "logit_scale") & (rows["stack"] == stack.index)]
    sizes = {branch.depth: size for branch in stack.branches if (size := _head_size(branch)) is not None}
    ratios = [row["observed"] * sizes[row["depth"]] ** 0.5 for row in records(rows) if row["depth"] in sizes]
    middle = median(ratios) if ratios else 1.0
    if len(ratios) >= LEAST_SIBLINGS and not 1 / LOGIT_SCALE_ALIKE < middle < LOGIT_SCALE_ALIKE:
        yield (
            f"The attention logits{name} are scaled by {middle:.3g} times 1 / sqrt(head size).",
            Evidence("factor of the logits x sqrt(head size)", middle, 1.0, "Vaswani et al. 2017, section 3.2.1"),
            "T5 has no scale and muP divides by the head size, each with an init to match; otherwise look at the factor.",
        )


def _head_size(branch: Branch) -> int | None:
    if branch.attention is None or branch.attention.qk_norm != "none":
        return None
    return branch.attention.head_size


def _finding(stack: Stack, sentence: str, evidence: Evidence, remedy: str) -> Finding:
    return Finding(
        code="unusual",
        severity="info",
        confidence=0.9,
        block=None,
        component=f"stack {stack.index}",
        module_path="",
        step=0,
        sentence=sentence,
        evidence=evidence,
        remedy=remedy,
    )
