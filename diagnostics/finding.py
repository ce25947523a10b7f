"""Say one thing about a run, with what it rests on and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Evidence:
    """What a finding rests on.

    Attributes:
        quantity: what was measured, with its unit.
        observed: its value.
        expected: the value that the law, the siblings or the threshold gives; None where only a limit is known.
        law: which law, siblings or threshold.
        tolerance: how far the observation may lie from the expectation.
    """

    quantity: str
    observed: float
    expected: float | None
    law: str
    tolerance: float | None = None


@dataclass(frozen=True)
class Finding:
    """One statement about a run.

    Attributes:
        code: short stable name of the rule, such as ``gradient-attenuation``.
        severity: info, warning or error.
        confidence: from 0 to 1; 1 for an exact identity.
        block: index of the block it is about; None for the whole model.
        component: which branch or part.
        module_path: the module, "" where it is none in particular.
        step: at which step it was first seen.
        sentence: what is the matter, in words, with its numbers.
        evidence: what it rests on.
        remedy: what to do.
        reference: where the law comes from.
        stack: index of the stack it is about; None where it is about none in particular, or the rule does not tell.
    """

    code: str
    severity: Severity
    confidence: float
    block: int | None
    component: str
    module_path: str
    step: int
    sentence: str
    evidence: Evidence
    remedy: str
    reference: str = ""
    stack: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a number that is not finite becomes None, which JSON can hold."""
        value = asdict(self)
        value["evidence"] = {
            name: None if isinstance(item, float) and not math.isfinite(item) else item
            for name, item in value["evidence"].items()
        }
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """Return the finding of which ``value`` is the plain form; keys of others are left out.

        Raises:
            KeyError: a part is missing.
            TypeError: the value is no mapping.
        """
        parts = {field.name: value[field.name] for field in fields(cls) if field.name != "evidence"}
        evidence = {field.name: value["evidence"][field.name] for field in fields(Evidence)}
        if evidence["observed"] is None:
            evidence["observed"] = math.nan
        return cls(**parts, evidence=Evidence(**evidence))
