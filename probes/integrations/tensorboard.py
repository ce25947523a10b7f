"""Show a run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from .sinks import Report


class TensorBoardSink:
    """Writes scalars named ``rheoscope/...`` into a log folder, or with a writer that is there already."""

    report: Report | None = None  # how the report of the run is written

    def __init__(self, target: str | Path | SummaryWriter) -> None:
        """Take a log folder, or the ``SummaryWriter`` of the program, which is then not closed."""
        self._target = target
        self._writer: Any = None

    def open(self, meta: Mapping[str, Any]) -> None:
        """Begin a run."""
        is_own = isinstance(self._target, str | Path)
        self._writer = SummaryWriter(str(self._target)) if is_own else self._target
        words = [f"{meta['model']['class_name']}, {meta['model']['n_parameters']:,} parameters", str(meta.get("label"))]
        self._writer.add_text("rheoscope/run", "  \n".join(words))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a sampled step."""
        for name, value in values.items():
            self._writer.add_scalar(f"rheoscope/{name}", value, step)
        self._writer.flush()

    def close(self, report: Path | None) -> None:
        """End the run. TensorBoard keeps no files: where the report is stands among its texts."""
        if report is not None:
            self._writer.add_text("rheoscope/report", str(report))
        self._writer.flush()
        if self._writer is not self._target:
            self._writer.close()
