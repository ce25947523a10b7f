"""Set known findings aside: by code and place, with a reason, so that a gate fails on what is new."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rheoscope.probes.errors import DiagnosisError

from .diagnosis import Diagnosis
from .finding import SEVERITIES, Finding

FILE = "rheoscope.toml"  # read where a command is started, unless another is named
TABLE = "suppress"
_KINDS: dict[str, type] = {"code": str, "reason": str, "stack": int, "block": int, "component": str, "module": str}
_EXAMPLE = f'[[{TABLE}]] code = "gradient-growth", reason = "deep post-norm, warm-up takes care of it"'


@dataclass(frozen=True)
class Suppression:
    """One finding, or several of one code, that is known and accepted.

    Attributes:
        code: of the finding.
        reason: why it is accepted; never empty.
        stack: index of the stack; None for any.
        block: index of the block; None for any.
        component: the branch or part; None for any.
        module: path of the module; None for any.
    """

    code: str
    reason: str
    stack: int | None = None
    block: int | None = None
    component: str | None = None
    module: str | None = None

    def is_of(self, finding: Finding) -> bool:
        """Return whether ``finding`` has this code and lies where this one says."""
        has = {
            "stack": finding.stack,
            "block": finding.block,
            "component": finding.component,
            "module": finding.module_path,
        }
        return finding.code == self.code and all(getattr(self, name) in (None, value) for name, value in has.items())

    @property
    def words(self) -> str:
        """Code and place."""
        places = [f"{name} {value}" for name in _KINDS if name not in ("code", "reason")
                  if (value := getattr(self, name)) is not None]  # fmt: skip
        return ", ".join([self.code, *places])


def read_suppressions(path: str | Path) -> tuple[Suppression, ...]:
    """Return the entries ``[[suppress]]`` of a TOML file.

    Raises:
        DiagnosisError: the file cannot be read, or an entry is none: without a reason above all.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DiagnosisError(
            f"Expected a TOML file of suppressions, got {str(path)!r} ({str(error)[:200]}). Entries look like: {_EXAMPLE}."
        ) from error
    entries = values.pop(TABLE, [])
    if values or not isinstance(entries, list):
        raise DiagnosisError(
            f"Expected entries [[{TABLE}]] and nothing else in {str(path)!r}, got {', '.join(values) or entries!r:.80}. "
            f"Entries look like: {_EXAMPLE}."
        )
    return suppressions(entries, str(path))


def suppressions(
    entries: Sequence[Mapping[str, Any] | Suppression], origin: str = "suppress="
) -> tuple[Suppression, ...]:
    """Return entries of plain values as suppressions.

    Args:
        entries: each with ``code`` and ``reason``, and any of ``stack``, ``block``, ``component``, ``module``.
        origin: where they stand, for an error.

    Raises:
        DiagnosisError: an entry is none: without a reason above all.
    """
    return tuple(
        entry if isinstance(entry, Suppression) else _suppression(entry, f"entry {number} of {origin}")
        for number, entry in enumerate(entries, start=1)
    )


def _suppression(entry: Mapping[str, Any], where: str) -> Suppression:
    wrong = [
        name
        for name, value in (entry.items() if isinstance(entry, Mapping) else [("", entry)])
        if name not in _KINDS or not isinstance(value, _KINDS[name]) or isinstance(value, bool)
    ]
    if wrong:
        known = ", ".join(f"{name} ({kind.__name__})" for name, kind in _KINDS.items())
        raise DiagnosisError(
            f"Expected {known} in {where}, got {', '.join(map(repr, wrong))[:200]}. Correct the entry."
        )
    for name in ("code", "reason"):
        if not entry.get(name, "").strip():
            raise DiagnosisError(
                f"Expected a {name} in {where}, got none. A finding is set aside by its code, and with the reason why it is "
                f"accepted: {_EXAMPLE}."
            )
    return Suppression(**entry)


@dataclass(frozen=True)
class Gate:
    """A diagnosis with known findings set aside.

    Attributes:
        diagnosis: with the findings that are left; its verdict is that of these.
        suppressed: each finding that was set aside, and what set it aside.
        unmatched: entries that matched no finding.
    """

    diagnosis: Diagnosis
    suppressed: tuple[tuple[Finding, Suppression], ...]
    unmatched: tuple[Suppression, ...]

    def fails(self, fail_on: str) -> bool:
        """Return whether a finding of severity ``fail_on`` or above is left."""
        return any(SEVERITIES.index(f.severity) >= SEVERITIES.index(fail_on) for f in self.diagnosis)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was set aside, and which entries matched nothing, in sentences."""
        aside = [f"Suppressed ({entry.reason}): {finding.sentence}" for finding, entry in self.suppressed]
        idle = [f"The suppression of {entry.words} matched no finding: it can go." for entry in self.unmatched]
        return (*aside, *idle)

    def to_json(self) -> dict[str, Any]:
        """Return plain values: verdict, findings and what was not judged; what was suppressed, and why; idle entries."""
        return {
            "verdict": self.diagnosis.verdict,
            "findings": [finding.to_json() for finding in self.diagnosis],
            "suppressed": [{**finding.to_json(), "reason": entry.reason} for finding, entry in self.suppressed],
            "unmatched_suppressions": [_plain(entry) for entry in self.unmatched],
            "not_judged": list(self.diagnosis.not_judged),
        }


def gate(diagnosis: Diagnosis, known: Sequence[Suppression]) -> Gate:
    """Return ``diagnosis`` without the findings that ``known`` sets aside, these, and the entries that matched none."""
    aside = [(finding, entry) for finding in diagnosis
             if (entry := next((one for one in known if one.is_of(finding)), None)) is not None]  # fmt: skip
    gone = {id(finding) for finding, _ in aside}
    left = tuple(finding for finding in diagnosis if id(finding) not in gone)
    idle = tuple(entry for entry in known if not any(map(entry.is_of, diagnosis)))
    return Gate(replace(diagnosis, findings=left), tuple(aside), idle)


def _plain(entry: Suppression) -> dict[str, Any]:
    return {name: value for name, value in asdict(entry).items() if value is not None}
