"""Write what a probe measured: rows, steps, events and the manifest. A full disk ends the writing, not the training."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .anatomy import Anatomy
from .errors import ProbeError, RecordingError
from .host_copies import ScalarCopies
from .log import MANIFEST, Log
from .recording import Recording
from .schema import MOST_TEXT, TABLES

FLUSH_EVERY = 50  # steps whose row is kept before it is written
logger = logging.getLogger("rheoscope")


class Writer:
    """The writing side of a probe.

    Attributes:
        first_step: the number of the first step; above 0 where a recording is continued.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any], *, resume: bool | int, strict: bool) -> None:
        """Open the recording.

        Args:
            folder: where it is written.
            head: its manifest, without what is found later.
            resume: whether a recording that is there is continued; a number is the step to continue at, and what was
                recorded of that step and later ones is dropped.
            strict: raise where the disk is full.

        Raises:
            RecordingExistsError: the folder already holds a recording and ``resume`` is false.
            RecordingError: the folder cannot be written, or the recording in it cannot be read.
        """
        self.first_step = 0
        at = None if isinstance(resume, bool) else resume
        self._log = Log(folder, resume=resume is not False)
        self._folder, self._strict = folder, strict
        self._head, self._anatomy = dict(head), Anatomy()
        self._steps: list[dict[str, Any]] = []
        self._scalars: list[ScalarCopies] = []
        self._groups: list[Sequence[Mapping[str, Any]]] = []
        self._events: list[dict[str, Any]] = []
        self._cut: str | None = None  # why nothing more is written
        self._is_ill = False
        try:
            if resume is not False and (folder / MANIFEST).exists():
                self._continue(Recording.load(folder), at)
            self._write_head()
        except OSError as error:
            raise RecordingError(
                f"Expected a folder that can be written, got {str(folder)!r} ({error}). Pass another, or free space."
            ) from error

    @property
    def recording(self) -> Recording:
        """The recording so far.

        Raises:
            RecordingError: the folder is gone or damaged.
        """
        return Recording.load(self._folder)

    def know(self, anatomy: Anatomy, not_measured: Sequence[str]) -> None:
        """Keep what discovery found."""
        self._anatomy = anatomy
        self._head["not_measured"] = list(not_measured)
        self._save_head()

    def columns(self, name: str, columns: Mapping[str, Any]) -> None:
        """Write columns of table ``name``; one that is not given is null."""
        if self._cut is not None:
            return
        try:
            self._log.append(name, columns)
        except OSError as error:
            self._stop(error)

    def event(self, step: int, kind: str, sentence: str) -> None:
        """Keep an event until the next flush."""
        self._events.append({"step": step, "kind": kind, "sentence": _text(sentence)})

    def add_step(self, row: Mapping[str, Any], scalars: ScalarCopies, groups: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keep a step until the next flush, which comes by itself every FLUSH_EVERY steps.

        Args:
            row: of table steps.
            scalars: more of it, on their way to the host; "group 0" and so on are gradient norms of ``groups``.
            groups: rows of table groups.
        """
        self._steps.append(dict(row))
        self._groups.append(groups)
        self._scalars.append(scalars)
        if len(self._steps) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Write the steps and events kept so far; the one place where the host waits for scalars."""
        steps, scalars, groups = self._steps, self._scalars, self._groups
        self._steps, self._scalars, self._groups = [], [], []
        rows = []
        for row, copies, mine in zip(steps, scalars, groups, strict=True):
            row.update(copies.values())
            if row.get("is_skipped") is not None:
                row["is_skipped"] = row["is_skipped"] > 0
            rows += [{**each, "step": row["step"], "gradient_norm": row.get(f"group {each['group']}")} for each in mine]
            self._look_at(row)
        events, self._events = self._events, []
        self._append("steps", steps)
        self._append("groups", rows)
        self._append("events", events)

    def close(self, *, has_failed: bool = False) -> None:  # noqa: ARG002
        """Write what is kept, compact the tables and close the manifest; ``has_failed`` where training ended in an exception."""
        self.flush()
        try:
            self._log.close()
        except OSError as error:
            self._stop(error)
        # Last: whoever waits for a closed recording finds its tables as they stay.
        self._head["status"] = "closed" if self._cut is None else f"cut off: {self._cut}"
        self._save_head()

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.columns(name, {column: [row.get(column) for row in rows] for column in TABLES[name]})

    def _look_at(self, row: Mapping[str, Any]) -> None:
        """Keep an event for the first loss that is not finite."""
        loss = row.get("loss")
        if not self._is_ill and loss is not None and not math.isfinite(loss):
            self._is_ill = True
            sentence = f"The loss of step {row['step']} is {loss}: every step after it trains on what is not finite."
            self.event(row["step"], "nonfinite_loss", sentence)

    def _write_head(self) -> None:
        self._log.write_manifest({**self._head, "anatomy": self._anatomy.to_json()})

    def _save_head(self) -> None:
        try:
            self._write_head()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        """Write nothing more: what follows a row that is half on the disk could not be read."""
        if self._cut is not None:
            return
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        self._cut = "the disk was full" if is_full else "the folder could not be written"
        expected = "room to write the recording in" if is_full else "to go on writing the recording in"
        sentence = (
            f"Expected {expected} {str(self._folder)!r}, got {error}. Training goes on unrecorded from here; what was written "
            f"stays readable. {'Free space' if is_full else 'Make the folder writable'} and continue with resume=True."
        )
        logger.error(sentence)
        if self._strict:
            raise ProbeError(sentence) from error

    def _continue(self, before: Recording, at: int | None) -> None:
        """Go on at step ``at``, or behind the last one recorded, and keep the anatomy until it is known anew."""
        self.first_step, last = self._log.continue_from(at)
        seams = before.manifest.get("resumed_at")
        kept: dict[str, Any] = {
            key: before.manifest[key] for key in ("created", "not_measured") if key in before.manifest
        }
        self._head |= {
            **kept,
            "label": self._head.get("label") or before.manifest["label"],
            "resumed_at": [*(seams if isinstance(seams, list) else []), self.first_step],
        }
        self._anatomy = before.anatomy
        sentence = f"The recording was continued at step {self.first_step}."
        if last >= self.first_step:
            sentence += f" It had reached step {last}: what it held from step {self.first_step} on was dropped."
        self.event(self.first_step, "resumed", sentence)


def _text(sentence: str) -> str:
    return sentence.encode("utf-8", "replace")[:MOST_TEXT].decode("utf-8", "ignore")
