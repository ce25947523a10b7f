"""Hold a model against what a long run needs of it, before the run: go or no-go, and what each rests on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

import numpy as np
from rheoscope.probes.recording import Recording

from .diagnosis import Diagnosis, diagnose
from .freshness import is_fresh
from .opened import opened
from .thresholds import INITIAL_LOSS_NEAR, UPDATE_RATIO_HIGH

Mark = Literal["ok", "look", "stop", ""]
OK: Final = "ok"
LOOK: Final = "look"
STOP: Final = "stop"
TOLD: Final = ""


@dataclass(frozen=True)
class Cost:
    """What a step takes.

    Attributes:
        seconds: median of a training step without probes.
        sampled_seconds: of one that is sampled in full.
        memory: largest resident memory (of a GPU: allocated) during steps without probes, bytes; None where it is not known.
        sampled_memory: during sampled steps.
    """

    seconds: float
    sampled_seconds: float
    memory: int | None = None
    sampled_memory: int | None = None


@dataclass(frozen=True)
class Line:
    """One line of the screen.

    Attributes:
        what: was looked at.
        measured: in words.
        expected: in words, "" where nothing is.
        mark: ok, look, stop, or "" where nothing is judged.
        profile: the same per block, from the first to the last; empty where it is of no block.
    """

    what: str
    measured: str
    expected: str = ""
    mark: Mark = TOLD
    profile: Sequence[float] = ()


@dataclass(frozen=True)
class Preflight:
    """What a model showed before its run.

    Attributes:
        check_up: of the model as it was built.
        first_steps: of its first steps on one batch, every one sampled in full.
        cost: of a step.
        setting: what was trained on what, in words.
        notes: on how it was built.
    """

    check_up: Recording
    first_steps: Recording
    cost: Cost
    setting: str
    notes: Sequence[str] = field(default=())

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The verdict on the model as it was built."""
        return diagnose(self.check_up)

    @property
    def verdict(self) -> Literal["GO", "GO, WITH A LOOK AT", "NO-GO"]:
        """NO-GO where a line says stop; otherwise whether one asks for a look."""
        marks = {line.mark for line in self.lines}
        return "NO-GO" if STOP in marks else "GO, WITH A LOOK AT" if LOOK in marks else "GO"

    @cached_property
    def lines(self) -> tuple[Line, ...]:
        """What was looked at, in the order of a launch."""
        return tuple(
            line for part in (self._anatomy, self._loss, self._bf16, self._updates, self._losses, self._findings, self._cost)
            for line in part()
        )  # fmt: skip

    def _anatomy(self) -> Iterator[Line]:
        found = self.check_up.anatomy
        norms = f"{found.placement}-norm, {found.norm_kind}"
        error = "not certified" if found.ledger_error is None else f"ledger error {found.ledger_error:.1g}"
        yield Line(
            "anatomy",
            f"{found.n_blocks} blocks, {found.n_branches} branches, {norms}; {error}",
            "every add accounted for",
            OK if found.is_complete else LOOK,
        )

    def _loss(self) -> Iterator[Line]:
        tables = opened(self.check_up)
        loss = float(tables.losses["loss"].iloc[0])
        words, scale = tables.anatomy.vocabulary, tables.identity("loss_scale")
        logits = tables.sites("logits")
        if not math.isfinite(loss):
            yield Line("initial loss", str(loss), "finite", STOP)
        elif words < 2 or scale is None or abs(scale - 1) > 0.01 or not is_fresh(tables, 0) or not len(logits):
            why = "its weights are not fresh" if not is_fresh(tables, 0) else "no mean cross-entropy over a vocabulary"
            yield Line("initial loss", f"{loss:.4g}", f"not predicted: {why}")
        else:
            rows = tables.activations
            std = float(
                rows[(rows["site"] == "logits") & (rows["direction"] == "forward")]["std"].astype(float).iloc[-1]
            )
            expected = math.log(words) + std**2 / 2
            yield Line(
                "initial loss",
                f"{loss:.4g}",
                f"{expected:.4g} = ln {words:,} + {std:.2g}² / 2",
                OK if abs(loss - expected) <= INITIAL_LOSS_NEAR else LOOK,
            )

    def _bf16(self) -> Iterator[Line]:
        rows = opened(self.check_up).identities
        rows = rows[rows["check"] == "bf16_error"]
        known = rows.dropna(subset=["observed"])
        if not len(known):
            why = "; ".join(rows["note"].dropna().astype(str)) or "the model is not in float32"
            yield Line("float32 against bf16", f"not measured: {why:.120}")
            return
        blocks = known.groupby(["stack", "block"], sort=True)["observed"].max().astype(float)
        odd = [finding for finding in self.diagnosis if finding.code == "bf16-error"]
        yield Line(
            "float32 against bf16",
            f"a write is {blocks.median():.1%} off at the median block, {blocks.max():.1%} at most",
            "no block alone",
            LOOK if odd else OK,
            tuple(blocks),
        )

    def _updates(self) -> Iterator[Line]:
        ratios = opened(self.first_steps).update_ratios().dropna(subset=["ratio"])
        if not len(ratios):
            yield Line("updates", "no optimizer moved the blocks' weights", "updates", STOP)
            return
        by_step = ratios.groupby("step")["ratio"].median()
        blocks = ratios.groupby(["stack", "block"], sort=True)["ratio"].max().astype(float)
        yield Line(
            f"update / weight, {len(by_step)} steps",
            f"{by_step.iloc[0]:.2g} at first, {by_step.iloc[-1]:.2g} at last; {blocks.max():.2g} at most",
            f"at most {UPDATE_RATIO_HIGH:g}",
            OK if blocks.max() <= UPDATE_RATIO_HIGH else LOOK,
            tuple(blocks),
        )

    def _losses(self) -> Iterator[Line]:
        steps = self.first_steps.table("steps", columns=["step", "loss", "gradient_norm", "unclipped_gradient_norm"])
        steps = steps.sort_values("step")
        losses = steps["loss"].to_numpy(float)
        norms = steps["unclipped_gradient_norm"].astype(float).fillna(steps["gradient_norm"].astype(float)).to_numpy()
        is_finite = len(losses) > 0 and bool(np.isfinite(losses).all())
        mark: Mark = STOP if not is_finite else OK if losses[-1] < losses[0] else LOOK
        told = "nothing recorded" if not len(losses) else f"{losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps"
        yield Line("loss on one batch", told, "falls", mark, tuple(losses) if is_finite else ())
        known = norms[np.isfinite(norms)]
        if len(known):
            yield Line("gradient norm before clipping", f"{known[0]:.3g} at first, {known.max():.3g} at most")

    def _findings(self) -> Iterator[Line]:
        counts = {s: sum(f.severity == s for f in self.diagnosis) for s in ("error", "warning")}
        mark: Mark = STOP if counts["error"] else LOOK if counts["warning"] else OK
        yield Line("findings at init", f"{counts['error']} errors, {counts['warning']} warnings", "none", mark)

    def _cost(self) -> Iterator[Line]:
        cost = self.cost
        more = cost.sampled_seconds / cost.seconds - 1
        yield Line(
            "a step",
            f"{_time(cost.seconds)}; sampled in full {_time(cost.sampled_seconds)} ({more:+.0%}), every tenth {more / 10:+.1%}",
        )
        if cost.memory is not None and cost.sampled_memory is not None:
            yield Line(
                "memory at most", f"{cost.memory / 1e6:,.0f} MB; with probes {cost.sampled_memory / 1e6:,.0f} MB"
            )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
