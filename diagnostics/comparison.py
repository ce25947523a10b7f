"""Set several recordings side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from rheoscope.probes.errors import DiagnosisError
from rheoscope.probes.recording import Recording

from .baseline import check_alike
from .diagnosis import Diagnosis, diagnose
from .expected import Prediction, theory_of_recording
from .frames import block_states, slope
from .notebook import comparison_html
from .tables import Tables


@dataclass(frozen=True)
class Comparison:
    """Recordings of variants of one thing.

    Attributes:
        recordings: label -> recording of a run, or of a check-up.
        at_init: label -> check-up before the first step; where a label has none, its recording's first step serves.
        against_depth: columns group, label, n_blocks, transmission, amplification: the same variants at other depths.
        title: what is compared.
        baseline: of a good run, against which each is judged.
        notes: what the comparison can tell and what it found, in sentences.
    """

    recordings: Mapping[str, Recording]
    at_init: Mapping[str, Recording] = field(default_factory=dict)
    against_depth: pd.DataFrame = field(default_factory=pd.DataFrame)
    title: str = ""
    baseline: Recording | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The variants, in the order given."""
        return list(self.recordings)

    @cached_property
    def diagnoses(self) -> dict[str, Diagnosis]:
        """The verdict on each variant's run."""
        return {label: diagnose(recording, self.baseline) for label, recording in self.recordings.items()}

    def _repr_html_(self) -> str:
        """Return the verdicts and the summary for a notebook."""
        verdicts = [(label, diagnosis.verdict) for label, diagnosis in self.diagnoses.items()]
        return comparison_html(self.title or "Comparison", verdicts, self.summary().dropna(axis="columns", how="all"))

    def initial(self, label: str) -> Recording:
        """Return the check-up at init, or the run whose first step stands for it."""
        return self.at_init.get(label, self.recordings[label])

    def group(self, label: str) -> str:
        """Return what several variants share, such as their init; "" without groups."""
        return str(self.recordings[label].manifest.get("group", ""))

    def variant(self, label: str) -> str:
        """Return what tells a variant from the others of its group."""
        return str(self.recordings[label].manifest.get("variant", label))

    def summary(self) -> pd.DataFrame:
        """Return one row a variant: design, loss, and what its norms and biases do to the propagation.

        ``skip_transmission``: from the last state to state 1, at init. ``amplification``: mean squared change of the
        last state per unit of relative random change of all block weights; ``relative_amplification``: the same over
        the last state's mean square, to be compared where states differ in size, as between pre- and post-norm.
        ``gradient_ratio``: gradient RMS after the first block over that after the last, at init.
        ``embedding_gradient_rms``: of state 0, at init. ``loss_last``: mean of the last tenth. ``bias_share``: the
        largest over branches at the last sampled step. ``bias_gradient_share``: energy of bias gradients over all
        gradients of the blocks, mean over blocks at the last sampled step. ``amplification_exponent``: see
        ``growth_with_depth``; missing where the variants were examined at one depth alone.

        With several stacks (encoder and decoder) what runs along depth is that of the last one, whose end the loss reads.
        """
        frame = pd.DataFrame([self._row(label) for label in self.labels])
        return frame.merge(self.growth_with_depth().drop(columns="group"), on="label", how="left")

    def _row(self, label: str) -> dict[str, Any]:
        run, start = Tables(self.recordings[label]), Tables(self.initial(label))
        anatomy = run.anatomy
        stack = max((stack.index for stack in start.anatomy.stacks), default=0)
        losses = run.losses["loss"].dropna()
        tail = losses.tail(max(1, len(losses) // 10))
        profile = first_step(of_stack(start.gradient_profile(), stack))
        blocks = block_states(profile)["rms"]
        shares = run.bias_share().groupby("step")["bias_share"].max()
        gradient_shares = run.bias_gradient_share().groupby("step")["share"].mean()
        transmission = first_step(of_stack(start.block_transmission(), stack))["transmission"]
        return {
            "label": label,
            "group": self.group(label),
            "placement": anatomy.placement,
            "norm_kind": anatomy.norm_kind,
            "has_biases": run.has_biases(),
            "n_blocks": anatomy.n_blocks,
            "loss_first": first(losses),
            "loss_last": float(tail.mean()) if len(tail) else None,
            "skip_transmission": first(transmission),
            "amplification": start.identity("amplification", stack),
            "relative_amplification": start.identity("relative_amplification", stack),
            "embedding_gradient_rms": first(profile[profile["depth"] == 0]["rms"]),
            "gradient_rms_first": first(blocks),
            "gradient_rms_last": first(blocks.iloc[::-1]),
            "gradient_ratio": ratio(first(blocks), first(blocks.iloc[::-1])),
            "bias_share_first": first(shares),
            "bias_share": first(shares.iloc[::-1]),
            "bias_gradient_share": first(gradient_shares.iloc[::-1]),
        }

    def growth_with_depth(self) -> pd.DataFrame:
        """Return, of ``against_depth``, how fast amplification grows: columns group, label, amplification_exponent.

        The exponent p of relative amplification ~ n_blocks^p, by least squares over all depths: about 1 or more for
        post-norm, below it for pre-norm (Liu et al. 2020; measured there, O(N) against O(log N)).
        """
        rows: list[dict[str, Any]] = []
        if len(self.against_depth):
            for (group, label), variant in self.against_depth.groupby(["group", "label"], sort=False):
                depths = np.log(variant["n_blocks"].to_numpy(float))
                exponent = slope(depths, variant["relative_amplification"].to_numpy(float))
                rows.append({"group": group, "label": label, "amplification_exponent": exponent})
        return pd.DataFrame(rows, columns=["group", "label", "amplification_exponent"])

    def predictions(self) -> dict[str, pd.DataFrame]:
        """Return the closed form by label: depth, rms, gradient, transmission, of the last stack.

        A label is absent where its recording is not of a model at init, or where the closed forms do not hold.
        """
        found = {}
        for label in self.labels:
            tables = Tables(self.initial(label))
            last = max((stack.index for stack in tables.anatomy.stacks), default=0)
            prediction = theory_of_recording(tables, last)
            if isinstance(prediction, Prediction):
                found[label] = prediction.frame
        return found


def compare(
    recordings: Mapping[str, Recording],
    *,
    at_init: Mapping[str, Recording] | None = None,
    baseline: Recording | None = None,
) -> Comparison:
    """Compare several recordings.

    Args:
        recordings: label -> recording, at least two.
        at_init: label -> check-up of the same variant before training.
        baseline: of a good run of the same model, against which each recording is judged.

    Raises:
        DiagnosisError: fewer than two recordings, or a label of ``at_init`` that is none of theirs.
        RecordingError: the baseline is of another model.
    """
    if len(recordings) < 2:
        raise DiagnosisError(
            f"Expected at least two recordings to compare, got {list(recordings)}. Use diagnose for a single one."
        )
    unknown = sorted(set(at_init or {}) - set(recordings))
    if unknown:
        raise DiagnosisError(
            f"Expected at_init for labels among {list(recordings)}, got {unknown}. Use the same labels."
        )
    if baseline is not None:
        for recording in recordings.values():
            check_alike(recording.anatomy, baseline.anatomy)
    return Comparison(dict(recordings), dict(at_init or {}), baseline=baseline)


def first_step(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first step in ``frame``."""
    return frame[frame["step"] == frame["step"].min()] if len(frame) else frame


def of_stack(frame: pd.DataFrame, stack: int) -> pd.DataFrame:
    """Return the rows of one stack."""
    return frame[frame["stack"] == stack]


def first(values: pd.Series) -> float | None:
    """Return the first value, None where there is none."""
    present = values.dropna()
    return float(present.iloc[0]) if len(present) else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return the quotient of two values, None where one is missing or the divisor 0."""
    return None if above is None or not below else above / below
