"""Carry out many runs, on every core or on a cluster; a sweep that was killed goes on where it was."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from rheoscope.probes.errors import LabError

from .run import Run, carried_out, described

RESULTS = "results.jsonl"
OnProgress = Callable[[int, int, str], None]


def sweep(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    executor: Executor | None = None,
    on_progress: OnProgress | None = None,
) -> pd.DataFrame:
    """Carry out ``runs`` and return one row each: its fields, what came of it, and ``error``, "" where it went well.

    A run that fails is a row with its error, and stops no other. What is done is kept in ``folder`` as it is done: a sweep that
    was killed and is started again carries out no finished run twice. One run given twice is carried out once.

    Args:
        runs: what to do.
        folder: of the results, and of the recordings of runs that ask for one.
        executor: anything with ``concurrent.futures``' interface; None for a process a core. ``Client(...).get_executor()`` of
            dask.distributed is one, where the workers see the same folder.
        on_progress: called with (runs done, runs in all, what was done last).

    Raises:
        LabError: the folder cannot be written, or holds results that are none of a sweep.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabError(
            f"Expected a folder that can be written, got {str(folder)!r} ({error}). Pass another."
        ) from error
    wanted = {run.key: run for run in runs}
    done = {key: row for key, row in _kept(folder).items() if key in wanted}
    left = [run for key, run in wanted.items() if key not in done]
    if on_progress:
        on_progress(len(done), len(wanted), "carried out before" if done else "")
    with (folder / RESULTS).open("a", encoding="utf-8") as file:
        for key, row in _results(left, folder, executor):
            file.write(json.dumps({"key": key, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            done[key] = row
            if on_progress:
                on_progress(len(done), len(wanted), str(row.get("error") or f"loss {row['last_loss']:.3f}"))
    return pd.DataFrame(
        [{"key": run.key, **described(run), **_placed(done[run.key], folder)} for run in wanted.values()]
    )


def _placed(row: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return a result whose recording is where the folder is now: it may have been moved, or be given from elsewhere."""
    recording = row.get("recording")
    return {**row, "recording": str(folder / Path(recording).name)} if recording else dict(row)


def _results(runs: Sequence[Run], folder: Path, executor: Executor | None) -> Any:
    """Yield the key and the result of every run, as they come."""
    if not runs:
        return
    # Spawned: torch's threads do not survive a fork.
    own = ProcessPoolExecutor(min(len(runs), os.cpu_count() or 1), get_context("spawn")) if executor is None else None
    with own if own is not None else nullcontext():
        pool = own if own is not None else executor
        assert pool is not None
        waiting: dict[Future[dict[str, Any]], str] = {pool.submit(isolated, run, folder): run.key for run in runs}
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                key, error = waiting.pop(future), future.exception()
                yield key, future.result() if error is None else _failed(error)


def isolated(run: Run, folder: Path) -> dict[str, Any]:
    """Carry out a run; an error is its result."""
    try:
        return {**carried_out(run, folder), "error": ""}
    except Exception as error:  # noqa: BLE001 - the other runs of a sweep go on
        return _failed(error)


def _failed(error: BaseException) -> dict[str, Any]:
    where = traceback.extract_tb(error.__traceback__)[-1:] if error.__traceback__ else []
    place = f" ({Path(where[0].filename).name}:{where[0].lineno})" if where else ""
    return {"error": f"{type(error).__name__}: {str(error)[:300]}{place}", "has_diverged": False}


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results of an earlier sweep in the folder; a last line that was cut by a kill is left out, and cut off."""
    path = folder / RESULTS
    if not path.exists():
        return {}
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if whole != text:
        path.write_bytes(whole)
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
        return {row.pop("key"): row for row in rows}
    except (ValueError, KeyError, AttributeError) as error:
        raise LabError(
            f"Expected the results of a sweep in {str(path)!r}, got {str(error)[:200]}. Pass another folder, or delete the file."
        ) from error
