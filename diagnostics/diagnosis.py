"""Judge a recording: every rule on its tables, root cause first."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, overload

import pandas as pd
from rheoscope.probes.errors import RecordingError
from rheoscope.probes.recording import Recording

from .activation_trap import activation_trap
from .against_theory import against_theory, not_compared
from .attention_in_training import attention_sinks, entropy_collapse
from .attenuation import gradient_slope, skip_path
from .baseline import against_baseline
from .baseline import not_compared as beyond
from .bf16 import bf16_errors
from .bias_terms import bias_drift, bias_gradients, redundant_biases
from .biases import bias_share
from .clipping import clipping
from .depth_use import gradient_shares, idle_blocks
from .finding import SEVERITIES, Finding
from .forecast import forecasts
from .hyperparameters import hyperparameters
from .initial_loss import initial_loss, worse_than_guessing
from .lone_blocks import (
    changed_projections,
    changed_writes,
    mixed_samples,
    rotation,
    silent_heads,
    stray_ends,
    stray_terms,
)
from .massive import massive_activations
from .nonfinite import first_nonfinite
from .norm_checks import backward_of_norms, epsilon_of_norms, form_of_norms
from .notebook import verdict_html
from .opened import opened
from .output_logits import output_logits
from .parameter_groups import decayed_gains, odd_rate
from .repeatability import repeatability
from .residual import range_of_fp16, residual_growth
from .rounding import rounded_shares, rounded_writes
from .second_moments import below_epsilon, stale_second_moments
from .signals import attention_logits, hidden_units, rank_collapse, write_size
from .spikes import loss_spikes
from .structure import frozen_block, norm_epsilon, odd_dropout, odd_parameters
from .tables import Tables
from .thresholds import ENTROPY_LEAST_STEPS, LEAST_BLOCKS, SPIKE_BAND_LEAST, UPDATE_JUDGED_AFTER
from .traits import low_ranks, odd_branches, shared_weights
from .unusual import unusual
from .updates import untrained, update_ratio, update_siblings
from .wiring import causality, gradient_conservation, logit_scale, loss_scale, odd_block, skip_scale

Rule = Callable[[Tables], list[Finding]]
RULES: tuple[Rule, ...] = (
    first_nonfinite,
    repeatability,
    gradient_conservation,
    causality,
    mixed_samples,
    skip_scale,
    changed_writes,
    changed_projections,
    logit_scale,
    odd_block,
    stray_terms,
    stray_ends,
    rotation,
    silent_heads,
    loss_scale,
    odd_branches,
    shared_weights,
    odd_dropout,
    odd_parameters,
    low_ranks,
    epsilon_of_norms,
    form_of_norms,
    backward_of_norms,
    norm_epsilon,
    frozen_block,
    initial_loss,
    worse_than_guessing,
    hidden_units,
    activation_trap,
    attention_logits,
    entropy_collapse,
    attention_sinks,
    write_size,
    rank_collapse,
    gradient_slope,
    skip_path,
    residual_growth,
    against_theory,
    range_of_fp16,
    rounded_writes,
    massive_activations,
    idle_blocks,
    gradient_shares,
    odd_rate,
    decayed_gains,
    update_siblings,
    update_ratio,
    below_epsilon,
    stale_second_moments,
    clipping,
    loss_spikes,
    untrained,
    bias_share,
    bias_drift,
    bias_gradients,
    redundant_biases,
    output_logits,
    bf16_errors,
    unusual,
    forecasts,
    hyperparameters,
)


@dataclass(frozen=True)
class Diagnosis(Sequence[Finding]):
    """What the rules found, root cause first.

    Attributes:
        findings: errors before warnings before remarks; within one severity, the earliest first.
        not_judged: what could not be judged, and why, in sentences.
    """

    findings: tuple[Finding, ...]
    not_judged: tuple[str, ...] = ()

    @property
    def worst(self) -> str | None:
        """The highest severity found, None without findings."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default=None)

    @property
    def verdict(self) -> Literal["PASS", "WARN", "FAIL"]:
        """PASS without warnings and errors, WARN with a warning, FAIL with an error."""
        return "FAIL" if self.worst == "error" else "WARN" if self.worst == "warning" else "PASS"

    def to_frame(self) -> pd.DataFrame:
        """Return one row a finding."""
        names = [
            "code",
            "severity",
            "confidence",
            "stack",
            "block",
            "component",
            "module_path",
            "step",
            "sentence",
            "remedy",
        ]
        rows = [[getattr(finding, name) for name in names] for finding in self.findings]
        return pd.DataFrame(rows, columns=names)

    def to_json(self) -> str:
        """Return the verdict, the findings and what was not judged, as JSON."""
        value = {
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
            "not_judged": list(self.not_judged),
        }
        return json.dumps(value, indent=1, allow_nan=False, default=str)

    def _repr_html_(self) -> str:
        """Return the verdict and the first findings for a notebook."""
        return verdict_html(self.verdict, self.findings, self.not_judged)

    def __len__(self) -> int:
        """Return the number of findings."""
        return len(self.findings)

    @overload
    def __getitem__(self, index: int) -> Finding: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Finding]: ...
    def __getitem__(self, index: int | slice) -> Finding | Sequence[Finding]:
        """Return one finding, or several."""
        return self.findings[index]

    def __iter__(self) -> Iterator[Finding]:
        """Iterate over the findings, root cause first."""
        return iter(self.findings)


def diagnose(recording: Recording, baseline: Recording | None = None) -> Diagnosis:
    """Judge ``recording`` by every rule; a pure function of it, and of the ``baseline`` where one is given.

    Args:
        recording: of a run or of a check-up.
        baseline: of a good run of the same model, whose values at like steps are the band that this run is held against.

    Returns:
        The findings, and what could not be judged and why.

    Raises:
        RecordingError: a table cannot be read, or the baseline is of another model.
    """
    tables = opened(recording)
    good = None if baseline is None else Tables(baseline)
    beside = () if good is None else (partial(against_baseline, baseline=good),)
    found: list[Finding] = []
    failed: list[str] = []
    for rule in (*RULES, *beside):
        try:
            found += rule(tables)
        except RecordingError:
            raise
        except Exception as error:  # noqa: BLE001 - a recording that contradicts itself is still judged by the other rules
            words = getattr(rule, "__name__", "against baseline").replace("_", " ")
            failed.append(
                f"Not judged by the rule {words}: it failed on this recording ({type(error).__name__}: {error!s:.200})."
            )
    ranked = sorted(
        _placed(found, tables),
        key=lambda f: (-SEVERITIES.index(f.severity), f.step, -f.confidence, f.block is None, f.block or 0),
    )
    return Diagnosis(tuple(ranked), (*failed, *_not_judged(tables), *([] if good is None else beyond(tables, good))))


def _placed(found: list[Finding], tables: Tables) -> list[Finding]:
    """Name the stack of each finding about a block whose rule did not, where it is the only one or the module tells it."""
    stacks = tables.anatomy.stacks
    homes = {branch.module_path: branch.stack for stack in stacks for branch in stack.branches if branch.module_path}

    def home(finding: Finding) -> int | None:
        if finding.stack is not None or finding.block is None:
            return finding.stack
        return stacks[0].index if len(stacks) == 1 else homes.get(finding.module_path)

    return [replace(finding, stack=home(finding)) for finding in found]


def _not_judged(tables: Tables) -> Iterator[str]:
    """Say what the recording does not hold enough of."""
    if tables.is_long:
        yield (
            f"Of this long run {len(tables.sampled_steps):,} of its sampled steps were judged: evenly spread ones, and those "
            "that stand out."
        )
    if not tables.anatomy.branches:
        yield "Nothing was judged by depth: the recording names no residual stream."
    if not len(tables.activations):
        yield "Activations and gradients were not judged: no step was sampled."
    elif not len(tables.gradient_profile()):
        yield "Gradient flow was not judged: no backward was recorded."
    for stack in tables.anatomy.stacks:
        if stack.n_blocks < LEAST_BLOCKS:
            has = f"{stack.n_blocks} block{'s' if stack.n_blocks != 1 else ''}"
            yield f"Trends over depth were not judged in stack {stack.index}: they need {LEAST_BLOCKS} blocks, it has {has}."
    yield from not_compared(tables)
    updates = tables.update_ratios()
    if not len(updates):
        yield "Updates were not judged: no optimizer step was recorded."
    elif updates["step"].max() < UPDATE_JUDGED_AFTER:
        yield f"Updates were not judged: the first {UPDATE_JUDGED_AFTER} steps belong to warm-up, and no later one was sampled."
    if tables.anatomy.branches and not len(tables.bias_share().dropna()):
        yield f"Bias shares were not judged: {_why_no_bias_share(tables)}."
    if not tables.recording.n_rows("attention"):
        yield "Attention was not judged: no attention call was seen, or it was not asked for."
    elif len(tables.sampled_steps) < ENTROPY_LEAST_STEPS:
        yield f"Attention's entropy was not judged: its fall over a run is, which needs {ENTROPY_LEAST_STEPS} sampled steps."
    dtypes = str(tables.recording.manifest.get("model", {}).get("dtype", "")).split(", ")
    if {"bfloat16", "float16"} & set(dtypes) and not len(rounded_shares(tables)):
        yield "What rounding takes of each write was not judged: no add into a stream of 16 bits could be followed."
    if 1 < len(tables.losses) <= SPIKE_BAND_LEAST:
        yield f"Loss spikes were not judged: they stand out from {SPIKE_BAND_LEAST} steps before them."


def _why_no_bias_share(tables: Tables) -> str:
    if tables.anatomy.has_biases:
        return "no step was sampled in which a branch's bias and its output were both seen"
    if tables.anatomy.is_parallel:
        return "parallel branches are added at once, and no hook tells their biases apart"
    return "no branch was found to end in a bias"
