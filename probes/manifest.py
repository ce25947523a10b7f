"""Say what was measured, on what, with what: the head of a recording."""

from __future__ import annotations

import platform
from dataclasses import is_dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from .schema import FORMAT

MOST_TIED = 1000  # parameters with several names that are listed


def manifest(
    model: nn.Module, *, every: int | None, label: str, schedule: object = None, triggered: int = 0
) -> dict[str, Any]:
    """Return the manifest of a recording of ``model`` that starts now; no arguments, paths or data of the user's."""
    parameters = list(model.parameters())
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    return {
        "format": FORMAT,
        "label": label,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "open",
        "versions": {"rheoscope": own_version(), "torch": torch.__version__, "python": platform.python_version()},
        "model": {
            "class_name": type(model).__name__,
            "n_parameters": sum(p.numel() for p in parameters),
            "dtype": ", ".join(dtypes),
            "device": ", ".join(sorted({p.device.type for p in parameters})),
            "tied": _tied(model),
        },
        "schedule": {"every": every, "words": _words(schedule), "triggered": triggered},
        "gradients": "as the optimizer saw them, after any clipping; divided by the loss scale where the scaler was given",
        "not_measured": [],
    }


def own_version() -> str:
    """Return the installed version of Rheoscope."""
    try:
        return version("rheoscope")
    except PackageNotFoundError:
        return "unknown"


def _tied(model: nn.Module) -> list[list[str]]:
    """Return the names of every parameter that has several, each once; the first is the one used in the tables."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [several for several in names.values() if len(several) > 1][:MOST_TIED]


def _words(schedule: object) -> str | None:
    """Return a schedule's words, or that it is a function."""
    is_told = is_dataclass(schedule)
    return None if schedule is None else repr(schedule)[:200] if is_told else "a function of the step"
