"""Own the file that a report is written to: in one piece, and never over something that is not a report."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from rheoscope.probes.errors import ReportError

MARK = '<meta name="generator" content="Rheoscope">'
_LOOKED_AT = 2_000  # bytes at the start of an existing file in which the mark is looked for


def write_page(text: str, path: str | Path) -> Path:
    """Write ``text`` to ``path`` and return its absolute path; a file that is there already must be a report.

    Raises:
        ReportError: the path is a folder, holds something else than a report, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise ReportError(
            f"Expected the path of a file, got the folder {str(target)!r}. Add a name such as report.html."
        )
    try:
        if target.exists() and target.stat().st_size and not _is_report(target):
            raise ReportError(
                f"Expected a new file or an earlier report at {str(target)!r}, got a file that is not a report. "
                "Pass another path, or remove it."
            )
        _replace(text, target)
    except OSError as error:
        raise ReportError(
            f"Expected a path that can be written, got {str(target)!r} ({error.strerror or error}). "
            "Make its folder, free space or pass another path."
        ) from error
    return target.absolute()


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return MARK.encode() in file.read(_LOOKED_AT)


def _replace(text: str, target: Path) -> None:
    """Write beside the target and move over it, so that no reader ever meets half a page."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
