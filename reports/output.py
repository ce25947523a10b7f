"""Own the file that a report is written to: in one piece, and never over something that is not a report."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rheoscope.probes.errors import ReportError

MARKS = (  # one for each form of a report
    b'<meta name="generator" content="Rheoscope">',
    b'"generator": "Rheoscope"',
    b"<!-- Written by Rheoscope -->",
    b"Written by Rheoscope.",
)
PICTURES = (b"\x89PNG", b"<svg", b"%PDF")
STANDARD_OUTPUT = "-"
_LOOKED_AT = 2_000  # bytes at the start of an existing file in which the mark is looked for


def write_text(text: str, path: str | Path) -> Path:
    """Write ``text`` to ``path``, ``-`` for standard output, and return its absolute path.

    A file that is there already must be a report.

    Raises:
        ReportError: the path is a folder, holds something else than a report, or cannot be written.
    """
    if str(path) == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return Path(path)
    return _write(text.encode(), Path(path), "report", lambda start: any(mark in start for mark in MARKS))


def write_bytes(picture: bytes, path: str | Path) -> Path:
    """Write a picture to ``path`` and return its absolute path; a file that is there already must be a picture.

    Raises:
        ReportError: the path is a folder, holds something else than a picture, or cannot be written.
    """
    return _write(picture, Path(path), "picture", lambda start: start.startswith(PICTURES))


def _write(content: bytes, target: Path, kind: str, is_ours: Callable[[bytes], bool]) -> Path:
    if target.is_dir():
        raise ReportError(
            f"Expected the path of a file, got the folder {str(target)!r}. Add a name such as report.html."
        )
    try:
        if target.exists() and target.stat().st_size and not is_ours(_start(target)):
            raise ReportError(
                f"Expected a new file or an earlier {kind} at {str(target)!r}, got a file that is not a {kind}. "
                "Pass another path, or remove it."
            )
        _replace(content, target)
    except OSError as error:
        raise ReportError(
            f"Expected a path that can be written, got {str(target)!r} ({error.strerror or error}). "
            "Make its folder, free space or pass another path."
        ) from error
    return target.absolute()


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LOOKED_AT)


def _replace(content: bytes, target: Path) -> None:
    """Write beside the target and move over it, so that no reader ever meets half a report."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
