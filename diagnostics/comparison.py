"""Set several recordings side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd
from rheoscope.probes.errors import DiagnosisError
from rheoscope.probes.recording import Recording

from .diagnosis import Diagnosis, diagnose
from .tables import Tables, block_states
from .theory import Start, predict


@dataclass(frozen=True)
class Comparison:
    """Recordings of variants of one thing.

    Attributes:
        recordings: label -> recording of a run, or of a check-up.
        at_init: label -> check-up before the first step; where a label has none, its recording's first step serves.
        against_depth: columns group, label, n_blocks, transmission, amplification: the same variants at other depths.
        title: what is compared.
    """

    recordings: Mapping[str, Recording]
    at_init: Mapping[str, Recording] = field(default_factory=dict)
    against_depth: pd.DataFrame = field(default_factory=pd.DataFrame)
    title: str = ""

    @property
    def labels(self) -> list[str]:
        """The variants, in the order given."""
        return list(self.recordings)

    @property
    def diagnoses(self) -> dict[str, Diagnosis]:
        """The verdict on each variant's run."""
        return {label: diagnose(recording) for label, recording in self.recordings.items()}

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

        ``skip_transmission``: from the last state to the first block, at init. ``gradient_ratio``: gradient RMS after
        the first block over that after the last, at init. ``embedding_gradient_rms``: of state 0, at init.
        ``bias_share``: the largest over branches at the last sampled step. ``bias_gradient_share``: energy of bias
        gradients over all gradients of the blocks, mean over blocks at the last sampled step.
        """
        return pd.DataFrame([self._row(label) for label in self.labels])

    def _row(self, label: str) -> dict[str, Any]:
        run, start = Tables(self.recordings[label]), Tables(self.initial(label))
        losses = run.steps["loss"].dropna()
        profile = first_step(start.gradient_profile())
        blocks = block_states(profile)["rms"]
        shares = run.bias_share().groupby("step")["bias_share"].max()
        gradient_shares = run.bias_gradient_share().groupby("step")["share"].mean()
        transmission = first_step(start.block_transmission())["transmission"]
        anatomy = run.anatomy
        tail = losses.tail(max(1, len(losses) // 10))
        return {
            "label": label,
            "group": self.group(label),
            "placement": anatomy.placement,
            "norm_kind": anatomy.norm_kind,
            "has_biases": anatomy.has_biases,
            "n_blocks": anatomy.n_blocks,
            "loss_first": first(losses),
            "loss_last": float(tail.mean()) if len(tail) else None,
            "skip_transmission": first(transmission),
            "amplification": start.identity("amplification"),
            "relative_amplification": start.identity("relative_amplification"),
            "embedding_gradient_rms": first(profile[profile["depth"] == 0]["rms"]),
            "gradient_rms_first": first(blocks),
            "gradient_rms_last": first(blocks.iloc[::-1]),
            "gradient_ratio": ratio(first(blocks), first(blocks.iloc[::-1])),
            "bias_share_first": first(shares),
            "bias_share": first(shares.iloc[::-1]),
            "bias_gradient_share": first(gradient_shares.iloc[::-1]),
        }

    def predictions(self) -> dict[str, pd.DataFrame]:
        """Return, where the recording names its init, the closed form: depth, rms, gradient, transmission.

        ``gradient`` is scaled to the measured RMS at the last state.
        """
        found = {}
        for label in self.labels:
            recording = self.initial(label)
            given = recording.manifest.get("theory")
            tables = Tables(recording)
            state, profile = first_step(tables.state_rms()), first_step(tables.gradient_profile())
            energy, last = (
                first(state[state["depth"] == 0]["rms"]),
                first(profile.sort_values("depth")["rms"].iloc[::-1]),
            )
            known = {f.name for f in fields(Start)} - {"energy"}
            if not isinstance(given, dict) or energy is None or last is None or not set(given) <= known:
                continue
            try:
                frame = predict(Start(**given, energy=energy**2))
            except (ValueError, TypeError):
                continue
            found[label] = frame.assign(gradient=frame["gradient"] * last)
        return found


def compare(recordings: Mapping[str, Recording], *, at_init: Mapping[str, Recording] | None = None) -> Comparison:
    """Compare several recordings.

    Args:
        recordings: label -> recording, at least two.
        at_init: label -> check-up of the same variant before training.

    Raises:
        DiagnosisError: fewer than two recordings, or a label of ``at_init`` that is none of theirs.
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
    return Comparison(dict(recordings), dict(at_init or {}))


def first_step(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the first step in ``frame``."""
    return frame[frame["step"] == frame["step"].min()] if len(frame) else frame


def first(values: pd.Series) -> float | None:
    """Return the first value, None where there is none."""
    present = values.dropna()
    return float(present.iloc[0]) if len(present) else None


def ratio(above: float | None, below: float | None) -> float | None:
    """Return the quotient of two values, None where one is missing or the divisor 0."""
    return None if above is None or not below else above / below
