"""Count what a sampled step would give a GPU to do: launches, bytes read and bytes written: python benchmarks/launches.py.

On a GPU time is launches and bytes. Both follow from the calls alone, so that they are counted on the CPU: the C kernel is
switched off, the fused kernel is counted in the place of Triton's, with the torch operations around it, and a dispatch mode
counts every other torch operation inside our callbacks that is neither a view nor an allocation.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rivals
import torch
from measuring import show
from rheoscope.probes import statistics
from rheoscope.probes.kernels import N_SUMS, WANTS_CHANNELS, by_c, by_torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from training import Inside, Loop, Setting

SETTINGS = (Setting(6, 256, (4, 128)), Setting(4, 512, (4, 256)))
KINDS = {
    "every=1": "full set but exact attention",
    "all=1": "exact attention as well",
    "control": "control: reads the same tensors once",
    "naive": "naive hooks",
}
HEAD = """Counted on the CPU, not timed: calls of the fused kernel and torch operations inside callbacks that are neither views
nor allocations, each at least one launch on CUDA, and the sizes of what they are given and give."""
FUSED = "activations and gradients: the fused kernel"
COPY = "rows and their copy to the host"
PARTS = {  # module of ours that calls -> part of the set
    "statistics": "activations and gradients: around the kernel, and both paths of a gradient",
    **dict.fromkeys(("tokens", "token_sums", "scratch"), "tokens"),
    "logits": "log Z",
    **dict.fromkeys(("parameters", "adam"), "parameters and Adam"),
    **dict.fromkeys(("attention", "attention_logits", "attention_statistics", "function_taps"), "attention"),
    "biases": "biases",
    **dict.fromkeys(("host_copies", "device_rows", "sample"), COPY),
}
SILENT = {"empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "detach", "alias", "_unsafe_view", "set_"}
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"}


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch operations by the part of the set that asks for them.

    Attributes:
        parts: part -> launches, bytes read, bytes written.
        n_waits: operations for whose result the host waits.
    """

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self.parts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
        self.n_waits = 0

    def add(self, part: str, n_read: int, n_written: int) -> None:
        """Count one launch."""
        found = self.parts[part]
        found[0] += 1
        found[1] += n_read
        found[2] += n_written

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation and run it."""
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in WAITS:
            # A scalar of the loop's that is on the CPU is read at once; on a device it comes with the step's copy.
            self.n_waits += _part() != COPY
        elif name not in SILENT and not _is_view(function):
            self.add(_part(), _n_bytes((args, kwargs)), _n_bytes(result))
        return result


class Counting(Inside):
    """Counts what callbacks launch, instead of their time."""

    def __init__(self) -> None:
        """Start at 0."""
        super().__init__()
        self.launches = Launches()

    def timed(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``callback``, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return callback(*args, **kwargs)
            self._depth = 1
            try:
                with self.launches:
                    return callback(*args, **kwargs)
            finally:
                self._depth = 0

        return call


class FusedKernel:
    """Stands for the Triton kernel: launches what ``by_triton.moments`` does, with torch's result."""

    def __init__(self, launches: Launches) -> None:
        """Count into ``launches``."""
        self._launches = launches

    def moments(self, tensor: Tensor, out: Tensor, flags: int) -> bool:
        """Write the ten sums of ``tensor`` to ``out``."""
        values = tensor.detach().contiguous()
        out.zero_()
        channels = torch.zeros(values.shape[-1] if values.dim() and flags & WANTS_CHANNELS else 1, dtype=torch.float64)
        self._launches.add(FUSED, values.nbytes, 8 * N_SUMS)
        if flags & WANTS_CHANNELS:
            spare = torch.empty(1, dtype=torch.float64)
            spare[0] = channels.abs().max() / 1
        with _disable_current_modes():
            out.copy_(by_torch.moments(values, flags))
        return True


def main() -> None:
    """Print both settings' tables."""
    torch.set_num_threads(1)
    sys.stdout.write(f"{HEAD}\n\n")
    counting = Counting()
    counting.watch_probes()
    _as_on_a_gpu(counting)
    for setting in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            counted = {kind: _count(setting, kind, Path(folder) / kind, counting) for kind in KINDS}
        _show(setting, counted)


def _count(setting: Setting, kind: str, folder: Path, counting: Counting) -> tuple[dict[str, list[int]], int]:
    """Return the parts of one sampled step, and for how many operations the host waits."""
    loop = Loop(setting, kind, folder, counting)
    loop.run(3)
    counting.launches.clear()
    loop.run(1)
    # Copied before what closing and the next loop launch.
    found = {part: list(counts) for part, counts in counting.launches.parts.items()}, counting.launches.n_waits
    loop.close()
    return found


def _as_on_a_gpu(counting: Counting) -> None:
    """Have sheets use the fused kernel, everything else torch's operations, and the control count what it reads."""
    by_c.kernel = None
    initialise = statistics.Sheet.__init__

    def made(sheet: statistics.Sheet, n_rows: int, device: torch.device) -> None:
        initialise(sheet, n_rows, device)
        sheet._on_cuda = FusedKernel(counting.launches)

    statistics.Sheet.__init__ = made  # type: ignore[method-assign, assignment]

    def total(_: int, n: int) -> float:
        counting.launches.add("reads", 4 * n, 4)
        return 0.0

    rivals.read_once = lambda: total  # type: ignore[assignment]


def _show(setting: Setting, counted: dict[str, tuple[dict[str, list[int]], int]]) -> None:
    control = sum(n_read for _, n_read, _ in counted["control"][0].values())
    rows = []
    for kind, (parts, n_waits) in counted.items():
        launches, n_read, n_written = (sum(values) for values in zip(*parts.values(), strict=True))
        ratio = f"{n_read / control:.2f}"
        rows.append((KINDS[kind], str(launches), _mb(n_read), _mb(n_written), ratio, str(n_waits)))
    columns = ("", "launches", "MB read", "MB written", "read, times the control", "waits of the host")
    show(f"{setting}; one sampled step, float32:", columns, rows)
    parts = counted["all=1"][0]
    sys.stdout.write("\n")
    detail = [
        (name, str(launches), _mb(n_read), _mb(n_written))
        for name, (launches, n_read, n_written) in sorted(parts.items(), key=lambda item: -item[1][0])
    ]
    show("Of these, by part, with exact attention:", ("", "launches", "MB read", "MB written"), detail)
    sys.stdout.write("\n")


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f}"


def _is_view(function: Any) -> bool:
    """Return whether an operation only gives its argument another shape."""
    returned = function._schema.returns
    return bool(returned) and all(each.alias_info is not None and not each.alias_info.is_write for each in returned)


def _n_bytes(values: Any) -> int:
    return sum(value.numel() * value.element_size() for value in tree_leaves(values) if isinstance(value, Tensor))


def _part() -> str:
    """Return the part of the set whose module stands nearest on the stack."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("rheoscope.probes.") and ".kernels" not in name:
            return PARTS.get(name.rpartition(".")[2], "the rest")
        if frame.f_code is FusedKernel.moments.__code__:
            return PARTS["statistics"]
        frame = frame.f_back
    return "the rest"


if __name__ == "__main__":
    main()
