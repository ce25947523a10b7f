"""Put recordings, anatomies and findings into the words of the page and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from rheoscope.diagnostics.diagnosis import Diagnosis
from rheoscope.diagnostics.finding import Finding
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.recording import Recording

from .theme import counted, number, plain

DEFINITIONS = (
    (
        "residual stream",
        "The running sum that blocks read from and add to. Sum k is the result of the k-th residual add; state k is what "
        "the next skip path and branch read: norm(sum k) under post-norm, the sum itself otherwise. State 0 is the embedding.",
    ),
    (
        "branch, write",
        "A branch (attention, MLP, mixer) is what is added to the stream; its write is what it really added.",
    ),
    (
        "norm placement",
        "pre: x + f(norm(x)); post: norm(x + f(x)); double: x + norm(f(norm(x))); reordered: x + norm(f(x)); "
        "none: x + f(x).",
    ),
    (
        "ledger",
        "The proof that the stream was found: at every add, sum = scale × skip operand + write, each of the three seen by a "
        "hook of its own. The ledger error is the largest relative difference.",
    ),
    ("RMS", "Root mean square over all elements of a tensor: batch, position and channel."),
    (
        "skip transmission",
        "Gain of the gradient along the skip path alone: the product of what the norms and scales on the stream do to it. "
        "1 for pre, double and reordered norms.",
    ),
    (
        "amplification",
        "Mean squared change of the last state when Gaussian noise, relative to each weight matrix's own standard "
        "deviation, is added to all of them, per unit of relative variance; the relative one is over the state's own "
        "mean square.",
    ),
    ("bias share", "Energy of the last projection's bias over energy of the branch's output."),
    ("update ratio", "RMS of one optimizer step over RMS of the weights it changes."),
    (
        "attribution, completeness error",
        "Attribution books a change to parts along a straight path between two states of the model; what the parts' values miss "
        "of the change, over the change, is the completeness error. Above 5 % no part is named. It is bookkeeping, no causality.",
    ),
    ("verdict", "PASS without warnings and errors, WARN with a warning, FAIL with an error."),
)


SUMMARY_COLUMNS = {
    "label": "variant",
    "placement": "norm placement",
    "norm_kind": "norm kind",
    "has_biases": "biases",
    "n_blocks": "blocks",
    "skip_transmission": "skip transmission",
    "relative_amplification": "relative amplification",
    "gradient_ratio": "gradient first / last block",
    "bias_share": "largest bias share",
    "bias_gradient_share": "bias gradient share",
    "loss_last": "final loss",
    "loss_interval": "final loss over seeds, 95 % interval",
    "best_lr": "best learning rate",
    "largest_stable_lr": "largest stable learning rate",
}


_NORM_KINDS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm", "mixed": "norms of several kinds", "none": "no norms"}


KINDS = {"error": "error", "warning": "warning", "info": "remark"}
DESIGN_REMARKS = {
    "unusual",
    "hyperparameter",
}  # codes of findings on what all blocks share, a design as far as can be told

MOST_EVENTS = 200


@dataclass(frozen=True)
class Item:
    """A finding in words."""

    anchor: str
    severity: str
    kind: str
    sentence: str
    evidence: str
    remedy: str
    reference: str


def items(diagnosis: Diagnosis, prefix: str = "finding") -> list[Item]:
    """Return the findings in words, root cause first."""
    return [_item(finding, f"{prefix}-{index}") for index, finding in enumerate(diagnosis, start=1)]


def _item(finding: Finding, anchor: str) -> Item:
    evidence = finding.evidence
    parts = [f"{evidence.quantity}: {number(evidence.observed)}"]
    if evidence.expected is not None:
        parts.append(f"expected {number(evidence.expected)}")
    if evidence.tolerance is not None:
        parts.append(f"limit {number(evidence.tolerance)}")
    text = f"{', '.join(parts)} ({plain(evidence.law, 300)}). Confidence {finding.confidence:.0%}."
    if finding.module_path:
        text += f" Module {plain(finding.module_path)}."
    remedy = "" if finding.severity == "info" and finding.remedy == "None needed." else plain(finding.remedy, 600)
    kind = "design remark" if finding.code in DESIGN_REMARKS else KINDS[finding.severity]
    return Item(
        anchor, finding.severity, kind, plain(finding.sentence, 600), text, remedy, plain(finding.reference, 300)
    )


def verdict_sentence(diagnosis: Diagnosis) -> str:
    """Return what the verdict rests on."""
    n = len(diagnosis.not_judged)
    counts = {severity: sum(f.severity == severity for f in diagnosis) for severity in ("error", "warning", "info")}
    found = [f"{count} {KINDS[severity]}{'s' if count != 1 else ''}" for severity, count in counts.items() if count]
    return (", ".join(found) or "Nothing could be judged") + f"; {n} matter{'s were' if n != 1 else ' was'} not judged."


def anatomy_sentence(anatomy: Anatomy) -> str:
    """Return what discovery found and how well it is proven."""
    if not anatomy.stacks:
        return "No forward pass was seen, so no residual stream was found."
    stacks = f"{len(anatomy.stacks)} stacks, " if len(anatomy.stacks) > 1 else ""
    error = anatomy.ledger_error
    proof = (
        f"At every add the sum is skip operand plus write, to {number(error)} relative, each term seen by a hook of its own."
        if anatomy.is_complete
        else "Not every add is proven: "
        + (f"where all terms are seen the ledger error is {number(error)}; " if error is not None else "")
        + f"{len(anatomy.problems)} reservations stand under what was not measured."
    )
    size = f"{counted(anatomy.n_blocks, 'block')}, {counted(anatomy.n_branches, 'branch')}"
    return f"{stacks}{size}, {anatomy.placement}-norm, " + (
        f"{_NORM_KINDS.get(anatomy.norm_kind, anatomy.norm_kind)}. {proof}"
    )


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the summary of a comparison as readers want it: without the columns of design that all variants share."""
    same = [c for c in ("placement", "norm_kind", "has_biases", "n_blocks") if frame[c].nunique() == 1]
    empty = [c for c in SUMMARY_COLUMNS if not frame[c].notna().any()]
    return frame[[c for c in SUMMARY_COLUMNS if c not in (*same, *empty)]].rename(columns=SUMMARY_COLUMNS)


def facts(recording: Recording) -> list[tuple[str, str]]:
    """Return what was measured, on what."""
    manifest = recording.manifest
    model = _mapping(manifest.get("model"))
    n_steps, n_sampled = len(recording.table("steps", columns=["step"])), _n_sampled(recording)
    rows = [
        ("Model", f"{plain(model.get('class_name', 'unknown'))}, {_count(model.get('n_parameters'))} parameters, "
         f"{plain(model.get('dtype', ''))} on {plain(model.get('device', ''))}"),
        ("Measured", f"{n_sampled:,} of {n_steps:,} steps in full: activations, gradients, parameters; loss of all steps"
         if n_steps > 1 else "one forward and backward, and active checks"),
        ("Recorded", plain(manifest.get("created", "unknown"))),
    ]  # fmt: skip
    if recording.is_long("activations"):
        rows.append(("Shown", "of this long run evenly spread sampled steps, and those that stand out"))
    if manifest.get("status") != "closed":
        rows.append(
            ("State", "the run was not closed: it is still going on, or it was cut off; what it flushed is shown")
        )
    return rows


def steps_note(n_steps: int, recording: Recording) -> str:
    """Return which steps the page can bring up, where it is not all that were sampled."""
    n_sampled = _n_sampled(recording)
    return f"{n_steps} of {n_sampled:,} sampled steps: those that stand out" if 1 < n_steps < n_sampled else ""


def _n_sampled(recording: Recording) -> int:
    steps = recording.table("steps", columns=["is_sampled"])
    return int(steps["is_sampled"].fillna(value=False).astype(bool).sum())


def provenance(recording: Recording) -> list[tuple[str, str]]:
    """Return with what, and how, the recording was made."""
    manifest = recording.manifest
    versions = ", ".join(f"{plain(k)} {plain(v)}" for k, v in _mapping(manifest.get("versions")).items())
    schedule = _mapping(manifest.get("schedule"))
    return [
        ("Versions", versions or "unknown"),
        ("Recording format", plain(manifest.get("format", "unknown"))),
        ("Schedule", _schedule(schedule)),
        ("Gradients", plain(manifest.get("gradients", "unknown"), 300)),
    ]


def _schedule(schedule: dict[str, object]) -> str:
    every, words_ = schedule.get("every"), schedule.get("words")
    return f"every {plain(every)} steps in full" if every else plain(words_ or "a schedule of the user's own", 300)


def not_measured(recording: Recording) -> list[str]:
    """Return what was not measured and why, each once."""
    given = recording.manifest.get("not_measured", [])
    found = [*(given if isinstance(given, list) else []), *recording.anatomy.problems]
    return [plain(sentence, 600) for sentence in dict.fromkeys(map(str, found))]


def events(recording: Recording) -> Iterator[str]:
    """Yield what happened during the run."""
    table = recording.table("events")
    for row in table.head(MOST_EVENTS).itertuples():
        yield f"Step {row.step}: {plain(row.sentence, 600)}"
    if len(table) > MOST_EVENTS:
        yield f"{len(table) - MOST_EVENTS:,} more events stand in the recording."


def _mapping(value: object) -> dict[str, object]:
    return {str(k): v for k, v in value.items()} if isinstance(value, dict) else {}


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"
