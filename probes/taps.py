"""Tap the current: measure activations as they pass and gradients as they come back, with no host copy in between.

Gradients come from tensor hooks on the tapped tensors, never from full backward hooks, which break in-place adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .anatomy import Anatomy, Branch, Point
from .hooked import Hooked, is_recomputing
from .schema import STATISTICS
from .sites import Layout, layout
from .statistics import COUNT, N_SUMS, SECOND, power_sums, statistics

# Columns of a row of path sums: elements, <state gradient, skip gradient>, |skip gradient|^2, |state gradient|^2.
N_PATHS = 4
MOST_READINGS = 64  # forwards measured in one step; more are not
Guard = Callable[[str, Callable[[], None]], None]


@dataclass
class Reading:
    """What one forward and its backward gave.

    Attributes:
        sums: rows of points forward, then of the same backward.
        paths: a row an add: the two paths by which its gradient reaches the state before.
        held: add -> the gradient that went down its skip path and has not arrived yet, and the skip's scale.
        came_back: points whose gradient has been seen.
        is_repeated: whether some gradient came back twice; the last one counts.
    """

    sums: Tensor
    paths: Tensor
    held: dict[int, tuple[Tensor, float]] = field(default_factory=dict)
    came_back: set[int] = field(default_factory=set)
    is_repeated: bool = False


class Taps:
    """The hooks of one probe: attached for the steps that are sampled, silent for the others.

    ``guard(where, action)`` runs every action; it must not let an exception out unless training is to stop.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy, guard: Guard) -> None:
        """Lay out the measurements; nothing is hooked yet."""
        self.anatomy = anatomy
        self.layout: Layout = layout(anatomy)
        self.readings: list[Reading] = []
        self._model = model
        self._guard = guard
        self._hooked: Hooked | None = None
        self._is_open = False
        self._flowing: Reading | None = None  # whose gradient came last: what checkpointing recomputes belongs to it
        self._on_leaves: list[Any] = []
        self._rows = {point: row for row, point in enumerate(self.layout.points)}
        self._paths = _paths(anatomy)

    @property
    def is_attached(self) -> bool:
        """Whether hooks are on the model."""
        return self._hooked is not None

    def attach(self) -> None:
        """Hook the model."""
        if self._hooked is None:
            self._hooked = Hooked(self._model, self.layout.points, self._see)

    def detach(self) -> None:
        """Unhook the model."""
        if self._hooked is not None:
            self._hooked.remove()
            self._hooked = None
        self._is_open = False
        self._release()

    def begin(self) -> bool:
        """Start a micro-batch: the next forward is measured into a new reading; return whether there is room."""
        self._flowing = None
        if self._hooked is None or len(self.readings) >= MOST_READINGS:
            return False
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        wide = torch.float32 if device.type == "mps" else torch.float64
        n_points = len(self.layout.points)
        # Outside inference mode, or the buffers could not be written later.
        with torch.inference_mode(False):
            sums = torch.zeros(2 * n_points, N_SUMS, dtype=wide, device=device)
            paths = torch.zeros(max(1, self.anatomy.n_branches), N_PATHS, dtype=wide, device=device)
        self.readings.append(Reading(sums, paths))
        self._hooked.restart()
        self._is_open = True
        return True

    def end(self, *, failed: bool = False) -> None:
        """End the forward: module calls until the next ``begin`` are somebody else's; one that failed is forgotten."""
        if failed and self._is_open:
            self.readings.pop()
        self._is_open = False

    def take(self) -> list[Reading]:
        """Return the readings since the last call, and forget them."""
        readings, self.readings = self.readings, []
        for reading in readings:
            reading.held.clear()
        self._release()
        return readings

    def _release(self) -> None:
        self._flowing = None
        for handle in self._on_leaves:
            handle.remove()
        self._on_leaves.clear()

    def _see(self, point: Point, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            return
        reading = self._flowing or (self.readings[-1] if self.readings else None)
        if is_recomputing():
            # Before the first gradient of a backward the latest forward is meant, unless its gradients are all back.
            if reading is not None and (self._flowing is not None or not reading.came_back):
                self._guard("forward", lambda: self._await_gradient(point, tensor, reading))
        elif self._is_open and reading is not None:
            self._guard("forward", lambda: self._measure(point, tensor, reading))

    def _measure(self, point: Point, tensor: Tensor, reading: Reading) -> None:
        reading.sums[self._rows[point]] = power_sums(tensor)
        self._await_gradient(point, tensor, reading)

    def _await_gradient(self, point: Point, tensor: Tensor, reading: Reading) -> None:
        if tensor.requires_grad:
            hook = self._backward(point, self._rows[point] + len(self._rows), reading)
            handle = tensor.register_hook(hook)  # type: ignore[no-untyped-call]
            if tensor.is_leaf:
                # Lives as long as its parameter, unlike an activation.
                self._on_leaves.append(handle)

    def _backward(self, point: Point, row: int, reading: Reading) -> Callable[[Tensor], None]:
        """Return a hook for the gradient at ``point``; it closes over rows and buffers, never over the activation."""
        arriving, leaving = self._paths.arriving.get(point), self._paths.leaving.get(point)

        def hook(gradient: Tensor) -> None:
            self._guard("backward", lambda: self._measure_gradient(gradient, row, arriving, leaving, reading))

        return hook

    def _measure_gradient(
        self, gradient: Tensor, row: int, arriving: int | None, leaving: tuple[int, float] | None, reading: Reading
    ) -> None:
        self._flowing = reading
        reading.is_repeated |= row in reading.came_back
        reading.came_back.add(row)
        reading.sums[row] = power_sums(gradient)
        if arriving is not None and arriving in reading.held:
            skip, scale = reading.held.pop(arriving)
            if skip.shape == gradient.shape:
                reading.paths[arriving] = _path_sums(gradient, skip, scale)
        if leaving is not None:
            # The engine never adds in place to a gradient that somebody holds.
            reading.held[leaving[0]] = (gradient.detach(), leaving[1])

    def activation_rows(self, readings: list[Reading]) -> list[dict[str, Any]]:
        """Return the rows of the activations table; this is the one copy to the host."""
        rows = []
        for micro_step, reading in enumerate(readings):
            sums = reading.sums.cpu().to(torch.float64)
            columns = {name: values.tolist() for name, values in statistics(sums).items()}
            counts = sums[:, COUNT].tolist()
            for offset, direction in ((0, "forward"), (len(self._rows), "backward")):
                for site in self.layout.sites:
                    row = self._rows[site.point] + offset
                    if counts[row] and not (offset and site.is_partial):
                        place = {
                            "micro_step": micro_step,
                            "stack": site.stack,
                            "block": site.block,
                            "branch": site.branch,
                            "depth": site.depth,
                            "site": site.site,
                            "call": site.point.call,
                            "direction": direction,
                            "module_path": site.point.module_path,
                        }
                        rows.append(place | {name: columns[name][row] for name in STATISTICS})
        return rows

    def path_rows(self, readings: list[Reading]) -> list[dict[str, Any]]:
        """Return the rows of the gradient_paths table."""
        rows = []
        for micro_step, reading in enumerate(readings):
            sums = reading.sums.cpu().to(torch.float64).tolist()
            paths = reading.paths.cpu().tolist()
            for index, branch in enumerate(self.anatomy.branches):
                gain = self._skip_gain(index, sums)
                parts = _parts(paths[index])
                if gain is not None or parts is not None:
                    place = {
                        "micro_step": micro_step,
                        "stack": branch.stack,
                        "block": branch.block,
                        "branch": branch.kind,
                        "depth": branch.depth,
                        "skip_gain": gain,
                    }
                    rows.append(place | (parts or {}))
        return rows

    def _skip_gain(self, index: int, sums: list[list[float]]) -> float | None:
        """Return the gain of the gradient from state k down the skip path to state k-1."""
        branch = self.anatomy.branches[index]
        if branch.sum is None:
            return abs(branch.scale)
        if "state" in branch.partial or "sum" in branch.partial:
            return None
        n = len(self._rows)
        if branch.state is None or branch.state not in self._rows or branch.sum not in self._rows:
            return None
        above, below = sums[n + self._rows[branch.state]], sums[n + self._rows[branch.sum]]
        if not (above[COUNT] and below[COUNT] and above[SECOND] > 0):
            return None
        return abs(branch.scale) * math.sqrt(below[SECOND] / above[SECOND])


@dataclass(frozen=True)
class _Paths:
    """Which add a point's gradient leaves for the skip path (with its scale), and at which it arrives from there."""

    leaving: dict[Point, tuple[int, float]]
    arriving: dict[Point, int]


def _paths(anatomy: Anatomy) -> _Paths:
    leaving, arriving = {}, {}
    for index, branch in enumerate(anatomy.branches):
        before = anatomy.stacks[branch.stack].start if branch.depth == 1 else anatomy.branches[index - 1].state
        source = branch.sum or branch.state
        first = branch.depth == 1
        parts = (
            anatomy.stacks[branch.stack].start_is_partial if first else "state" in anatomy.branches[index - 1].partial
        )
        if source is not None and before is not None and not parts and not _is_partial(branch):
            leaving[source] = (index, branch.scale)
            arriving[before] = index
    return _Paths(leaving, arriving)


def _is_partial(branch: Branch) -> bool:
    return ("sum" if branch.sum is not None else "state") in branch.partial


def _path_sums(gradient: Tensor, skip: Tensor, scale: float) -> Tensor:
    wide = torch.float32 if gradient.device.type == "mps" else torch.float64
    total = gradient.detach().reshape(-1).to(wide)
    part = skip.reshape(-1).to(total.device, wide)
    count = torch.full((), total.numel(), dtype=wide, device=total.device)
    return torch.stack(
        [count, scale * torch.dot(total, part), scale**2 * torch.dot(part, part), torch.dot(total, total)]
    )


def _parts(sums: list[float]) -> dict[str, float | None] | None:
    """Return the rms of the skip's and the branch's share of a state's gradient, and their cosine."""
    n, dot, skip, total = sums
    if not n:
        return None
    if not math.isfinite(total) or not math.isfinite(skip):
        return None
    branch = max(0.0, total - 2 * dot + skip)
    size = math.sqrt(skip * branch)
    cosine = (dot - skip) / size if size > 0 else None
    return {"skip_rms": math.sqrt(skip / n), "branch_rms": math.sqrt(branch / n), "cosine": cosine}
