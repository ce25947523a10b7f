"""Score outcomes: shares with Wilson intervals, by kind of fault, severity and what was kept aside."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from .faults import FAULTS, Fault
from .healthy import LOOK_ALIKES
from .trials import MONITORED_EVERY, MONITORED_STEPS, Outcome, fault_of
from .zoo_types import BLOCKS, OfType

Alarm = tuple[str, str, int | None, str]
Z = 1.96


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a share (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p = hits / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(hits: Iterable[bool]) -> str:
    """Return a share with its interval, in per cent."""
    found = list(hits)
    if not found:
        return "none"
    low, high = wilson(sum(found), len(found))
    value = sum(found) / len(found)
    return f"{100 * value:.1f} % of {len(found)} ({100 * low:.1f} to {100 * high:.1f})"


def is_detected(outcome: Outcome) -> bool:
    """Whether anything was reported."""
    return bool(outcome.alarms())


def is_located(outcome: Outcome, nth: int = 0) -> bool:
    """Whether the first report names the right block, and a right component where the fault has one."""
    fault, planted = FAULTS[outcome.trial.planted[nth].fault], outcome.trial.planted[nth]
    alarms = outcome.alarms()
    return bool(alarms) and (not fault.is_local or (alarms[0][2] == planted.block and _is_component(fault, alarms[0])))


def is_classed(outcome: Outcome) -> bool:
    """Whether the first report names the class, or an equivalent one."""
    alarms = outcome.alarms()
    return bool(alarms) and alarms[0][1] in fault_of(outcome.trial).codes


def is_named(outcome: Outcome, nth: int, among: int) -> bool:
    """Whether one of the first reports names the nth fault: class and block."""
    fault, planted = FAULTS[outcome.trial.planted[nth].fault], outcome.trial.planted[nth]
    return any(alarm[1] in fault.codes and alarm[2] == planted.block for alarm in outcome.alarms()[:among])


def _is_component(fault: Fault, alarm: Alarm) -> bool:
    return not fault.components or alarm[3] in fault.components


def page(
    found: dict[str, list[Outcome]], types: Sequence[OfType], aside: Sequence[str], seed: int, seconds: float
) -> str:
    """Return docs/verdicts.md."""
    kept = {kind: [o for o in outcomes if o.status not in ("absent", "benign")] for kind, outcomes in found.items()}
    single, healthy = kept["single"], kept["healthy"]
    lines = [
        "# How true the verdicts are",
        "",
        f"Written by `make verdicts` (seed {seed}, {seconds / 60:.0f} minutes): check-ups of small models, damaged or not. "
        "Shares are given with 95 % Wilson intervals. *Detected*: any warning or error. *Located*: the first one names the right "
        "block and branch. *Classed*: the first one names the class, or an equivalent one. A mutant that changes neither loss "
        "nor gradient by a thousandth is dropped, and so is a large bias that is not 1.5 times what it was; a trial that failed "
        "counts as a miss.",
        "",
        *_shares(single, aside),
        "",
        *_sentences(kept, types),
        "",
        "## What simpler watchers say of the same models",
        "",
        *_watchers(single, healthy),
        "",
        "## By class",
        "",
        *_by_class(single),
        "",
        "## What fails",
        "",
        *(f"- {text}" for text in _failures(single, [*healthy, *kept["monitored"]])),
        *(_of_type(t) for t in types if t.alarms or t.status.startswith("failed")),
    ]
    return "\n".join(lines) + "\n"


def _shares(single: list[Outcome], aside: Sequence[str]) -> Iterator[str]:
    """Yield the table of single faults."""
    rows: tuple[tuple[str, Callable[[Outcome], bool]], ...] = (
        ("all single faults", lambda _: True),
        ("exact (an identity shows them)", lambda o: fault_of(o.trial).is_exact),
        ("not exact", lambda o: not fault_of(o.trial).is_exact),
        ("subtle severities", _is_subtle),
        ("classes kept aside", lambda o: fault_of(o.trial).is_aside),
        ("models kept aside", lambda o: o.trial.subject in aside),
        ("fresh", lambda o: o.trial.steps == 0),
        ("after some training", lambda o: o.trial.steps > 0),
    )
    yield "| faults | detected | located | classed |"
    yield "|---|---|---|---|"
    for name, chosen in rows:
        mine = [o for o in single if chosen(o)]
        yield (
            f"| {name} | " + " | ".join(share(map(test, mine)) for test in (is_detected, is_located, is_classed)) + " |"
        )


def _sentences(kept: dict[str, list[Outcome]], types: Sequence[OfType]) -> Iterator[str]:
    """Yield the other counts, a line each."""
    healthy, watched = kept["healthy"], kept["monitored"]
    both = share(is_named(o, 0, 5) and is_named(o, 1, 5) for o in kept["double"])
    yield f"- Two faults at once, both among the first five reports: {both}."
    yield f"- Every block has the fault, reported at least as unusual: {share(map(_is_noted, kept['wide']))}."
    ill = share(is_located(o) for o in kept["single"] if "nan" in fault_of(o.trial).name)
    yield f"- First operation that is not finite, right block: {ill}."
    yield f"- Healthy models and look-alikes with an error: {share(_has(o, 'error') for o in healthy)}."
    yield f"- Healthy models and look-alikes with any warning: {share(bool(o.alarms()) for o in healthy)}."
    n_errors = sum(any(alarm[0] == "error" for alarm in t.alarms) for t in types)
    yield (
        f"- {sum(t.status == 'judged' for t in types)} types of transformers at init, {BLOCKS} blocks where their kind allows: "
        f"{n_errors} with an error, {sum(bool(t.alarms) for t in types)} with any warning."
    )
    steps = MONITORED_STEPS * sum(o.status == "judged" for o in watched)
    n_alarms = sum(len(o.alarms()) for o in watched)
    low, high = wilson(n_alarms, steps)
    yield (
        f"- Healthy training under a probe, {len(watched)} runs, {steps:,} recorded steps, {steps // MONITORED_EVERY:,} of them "
        f"sampled in full: {n_alarms} warnings and errors in all"
        + (
            f", {1e4 * n_alarms / steps:.1f} in 10,000 recorded steps ({1e4 * low:.1f} to {1e4 * high:.1f})."
            if steps
            else "."
        )
    )


def _watchers(single: list[Outcome], healthy: list[Outcome]) -> Iterator[str]:
    """Yield the table of baselines."""
    yield "| watcher | single faults reported | healthy models reported |"
    yield "|---|---|---|"
    for name in ("loss", "gradient norm", "thresholds"):
        cells = [
            share(o.baselines.get(name, False) for o in group if o.status == "judged") for group in (single, healthy)
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def _by_class(single: list[Outcome]) -> Iterator[str]:
    """Yield the table of classes."""
    yield "| class | trials | detected | located | classed | kept aside |"
    yield "|---|---|---|---|---|---|"
    for fault in FAULTS:
        mine = [o for o in single if fault_of(o.trial) is fault]
        if mine:
            counts = [sum(map(test, mine)) for test in (is_detected, is_located, is_classed)]
            cells = (fault.name, len(mine), *counts, "yes" if fault.is_aside else "")
            yield "| " + " | ".join(map(str, cells)) + " |"


def _of_type(of: OfType) -> str:
    told = "; ".join(f"{severity} {code} block {block}" for severity, code, block in of.alarms) or of.status
    return f"- type {of.name} at init: {told}"


def _is_subtle(outcome: Outcome) -> bool:
    return outcome.trial.planted[0].severity in fault_of(outcome.trial).subtle


def _has(outcome: Outcome, severity: str) -> bool:
    return any(alarm[0] == severity for alarm in outcome.findings)


def _is_noted(outcome: Outcome) -> bool:
    codes = fault_of(outcome.trial).codes
    return any(finding[1] in codes or finding[1] == "unusual" for finding in outcome.findings)


def _failures(single: list[Outcome], healthy: list[Outcome]) -> Iterable[str]:
    groups: dict[str, list[str]] = defaultdict(list)
    for o in single:
        planted = o.trial.planted[0]
        label = f"{fault_of(o.trial).name} x {planted.severity:g}"
        if not (is_detected(o) and is_located(o) and is_classed(o)):
            first = o.alarms()[0] if o.alarms() else None
            told = (
                o.status
                if o.status != "judged"
                else "missed"
                if first is None
                else f"told as {first[1]} in block {first[2]}"
            )
            groups[label].append(
                f"{o.trial.subject} (seed {o.trial.seed}, block {planted.block} of {o.trial.n_blocks}): {told}"
            )
    for label, cases in groups.items():
        kinds = Counter(case.split(": ", 1)[1] for case in cases)
        yield f"{label}: {len(cases)} ({', '.join(f'{kind} {n}' for kind, n in kinds.most_common(4))}); first: {cases[0]}"
    for o in healthy:
        if o.alarms() or o.status != "judged":
            name = LOOK_ALIKES[o.trial.look_alike or 0].__name__
            told = "; ".join(f"{a[0]} {a[1]} block {a[2]}" for a in o.alarms()) or o.status
            name = f"monitored, {o.trial.optimizer}" if o.trial.is_monitored else name
            yield f"healthy {o.trial.subject}, {name} (seed {o.trial.seed}, {o.trial.n_blocks} blocks): {told}"
