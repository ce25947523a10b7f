"""Write what one stage of a pipeline measures; the first stage joins all of them when it closes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RecordingError, RecordingExistsError
from .log import MANIFEST
from .recording import Recording
from .stage_folders import join, stage_folder
from .stages import Stage
from .table_files import last_of
from .writer import Writer

# The first stage waits so long for the others to close, after a run and after one that failed.
PATIENCE, PATIENCE_FAILED = 30.0, 1.0
logger = logging.getLogger("rheoscope")


class StageWriter(Writer):
    """The writing side of a probe on a stage."""

    def __init__(
        self, stage: Stage, folder: Path, head: Mapping[str, Any], *, resume: bool | int, strict: bool
    ) -> None:
        """Open the recording of the stage, inside ``folder``.

        Args:
            stage: which one it is.
            folder: of the whole pipeline's recording.
            head: the manifest, without what is found later.
            resume: as a writer's; where it is True all stages go on behind the last step that every one of them has recorded.
            strict: raise where the disk is full.

        Raises:
            RecordingExistsError: there is a recording already and ``resume`` is false.
            RecordingError: the folder cannot be written, or the recording in it cannot be read.
        """
        self._whole, self._stage = folder, stage
        if resume is False and (folder / MANIFEST).exists():
            raise RecordingExistsError(
                f"Expected a folder without a recording, got {str(folder)!r}, which holds one. "
                "Pass resume=True to continue it, or another folder."
            )
        if resume is True:
            resume = _first_step(folder, stage)
        mine = {**head, "stage": {"index": stage.index, "number": stage.n}}
        super().__init__(stage_folder(folder, stage.index), mine, resume=resume, strict=strict)

    @property
    def recording(self) -> Recording:
        """The recording of all stages where they are joined, else what this stage has measured so far.

        Raises:
            RecordingError: the folder is gone or damaged.
        """
        is_joined = self._stage.index == 0 and self._head["status"] != "open" and (self._whole / MANIFEST).exists()
        return Recording.load(self._whole) if is_joined else super().recording

    def close(self, *, has_failed: bool = False) -> None:
        """Close the stage's recording; on the first stage wait for the others, not for long, and join them."""
        super().close(has_failed=has_failed)
        if self._stage.index > 0:
            return
        end = time.monotonic() + (PATIENCE_FAILED if has_failed else PATIENCE)
        while time.monotonic() < end and self._is_awaited():
            time.sleep(0.05)
        try:
            join(self._whole)
        except RecordingError as error:
            logger.warning("The stages of the pipeline were not joined. %s", error)

    def _is_awaited(self) -> bool:
        """Return whether a stage that writes where this process can see it has not closed yet."""
        folders = [stage_folder(self._whole, index) for index in range(1, self._stage.n)]
        return any(folder.exists() and _status(folder) in (None, "open") for folder in folders)


def _status(folder: Path) -> Any:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError):
        return None


def _first_step(folder: Path, stage: Stage) -> bool | int:
    """Return behind which step all stages that can be seen go on; True where there is only this one to go by."""
    folders = [stage_folder(folder, index) for index in range(stage.n)]
    lasts = [last_of(each) for each in folders if (each / MANIFEST).exists()]
    return 1 + min(lasts) if lasts else True
