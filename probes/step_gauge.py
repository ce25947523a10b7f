"""Gather what one optimizer step is besides its tensors: scales, clipping, skipping, groups, memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .clipping import ClipWatch
from .optimizers import Optimizers
from .parameter_numbers import ParameterNumbers
from .parameters import ParameterTaps
from .scalars import on_host

Guard = Callable[[str, Callable[[], None]], None]
STATM = Path("/proc/self/statm")  # pages: size, resident, ...
PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Parts:
    """What one process knows of a step that it shares with others.

    Attributes:
        members: of each parameter group, the rows of its parameters.
        clip: what it adds, times how many add, to the squared norm before clipping, and the limit; None where it knows the
            norm, or nothing was clipped.
    """

    members: tuple[tuple[int, ...], ...]
    clip: tuple[Tensor, float] | None


class StepGauge:
    """Reads the numbers of one step after the other; what is on a device stays there.

    Attributes:
        n_updates: optimizer steps since the last ``restart``.
        scale: loss scale in force at the step's first forward; None without a scaler.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizers | None, scaler: Any, guard: Guard) -> None:
        """Start to watch clipping; ``guard(where, action)`` keeps errors of ours away from it."""
        self.n_updates = 0
        self.scale: Tensor | None = None
        self._optimizer = optimizer
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._skipped: Tensor | None = None
        self._unclipped: Tensor | None = None  # as others than torch told it
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._clips = ClipWatch(model, guard)

    def forward_begins(self) -> None:
        """Keep the loss scale: it is updated between the backward and the end of the step."""
        if self._scaler is None or self.scale is not None:
            return
        held = self._scaler._scale
        # Before its first use a scaler has made no tensor yet.
        self.scale = held.detach().clone() if held is not None else torch.tensor(float(self._scaler._init_scale))

    def scaled_by(self, scaler: Any) -> None:
        """Take in the scaler that has just multiplied the step's loss, where none is known."""
        if self._scaler is None and scaler.is_enabled():
            self._scaler = scaler
            self.forward_begins()

    def clipped_from(self, norm: Any) -> None:
        """Take in the norm before clipping from whoever clips; where torch clips it is known anyway."""
        told = norm if isinstance(norm, Tensor) else torch.tensor(float(norm))
        if told.numel() == 1 and type(told) is Tensor:
            self._unclipped = told.detach().reshape(()).clone()

    def updated(self) -> None:
        """Count one optimizer step; a fused one is told inside it whether to skip."""
        self.n_updates += 1
        found = getattr(self._optimizer, "found_inf", None)
        if isinstance(found, Tensor):
            self._skipped = found.detach().clone()

    def skipped(self, *, had_forward: bool) -> Tensor | None:
        """Return 1 where the scaler left out the step, 0 where not, None without a scaler."""
        if self._scaler is None or not (had_forward or self.n_updates):
            return None
        if self._skipped is not None:
            return self._skipped
        return torch.tensor(0.0 if self.n_updates else 1.0)

    def scalars(self, parameters: ParameterNumbers | None, *, had_forward: bool) -> dict[str, Tensor | None]:
        """Return the step's scalars on their devices; those of groups are named after their index."""
        unclipped, coefficient = self._clips.take()
        found = {
            "gradient_norm": None if parameters is None else parameters.gradient_norm,
            "unclipped_gradient_norm": self._unclipped if unclipped is None else unclipped,
            "clip_coefficient": coefficient,
            "loss_scale": self.scale,
            "is_skipped": self.skipped(had_forward=had_forward),
        }
        groups = self._optimizer.param_groups if parameters is not None and self._optimizer is not None else []
        if len(groups) == 1:
            return found | {"group 0": found["gradient_norm"]}
        return found | {
            f"group {i}": parameters.norm_of(group["params"]) for i, group in enumerate(groups) if parameters
        }

    def parts(self, parameters: ParameterTaps | None) -> Parts:
        """Return what this process alone knows of the step."""
        groups = self._optimizer.param_groups if parameters is not None and self._optimizer is not None else []
        members = tuple(parameters.rows_of(group["params"]) for group in groups) if parameters is not None else ()
        return Parts(members, self._clips.take_part())

    def groups(self) -> list[dict[str, Any]]:
        """Return one row a parameter group of the optimizer."""
        groups = self._optimizer.param_groups if self._optimizer is not None else []
        return [
            {"group": index, "lr": on_host(group.get("lr")), "weight_decay": on_host(group.get("weight_decay"))}
            for index, group in enumerate(groups)
        ]

    def row(self, groups: list[dict[str, Any]], n_measured: int | None) -> dict[str, Any]:
        """Return what table steps has of a step beside its scalars; ``n_measured`` micro-batches, None where none was to be."""
        is_sampled = n_measured is not None
        return {
            "lr": groups[0]["lr"] if groups else None,
            "micro_batches": n_measured,
            "is_sampled": is_sampled,
            "memory_bytes": self.memory() if is_sampled else None,
        }

    def memory(self) -> int:
        """Return the most bytes allocated on a CUDA device so far, or those that the process keeps resident."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        if STATM.exists():
            return int(STATM.read_text().split()[1]) * PAGE
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024

    def follow(self, model: nn.Module) -> None:
        """Watch the parameters that the model has now."""
        self._clips.follow(model)

    def restart(self) -> None:
        """Begin the next step."""
        self.n_updates, self.scale, self._skipped, self._unclipped = 0, None, None, None

    def close(self) -> None:
        """Stop watching."""
        self._clips.close()
