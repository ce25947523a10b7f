"""``make verdicts``: plant faults, judge, score, and write docs/verdicts.md."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .score import page
from .subjects import ASIDE, EVERY
from .trials import Outcome, Planted, Trial, class_wide, doubled, faulty, healthy, monitored, run
from .zoo_types import TYPES, check_up


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="verdicts", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-fault", type=int, default=4, help="trials of each class and severity")
    parser.add_argument("--per-pair", type=int, default=2, help="healthy trials of each subject and look-alike")
    parser.add_argument("--doubled", type=int, default=50)
    parser.add_argument("--wide", type=int, default=32)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="name of one fault, faults, healthy or monitored")
    parser.add_argument("--output", type=Path, default=Path("docs/verdicts.md"))
    given = parser.parse_args()
    plans: dict[str, list[Trial]] = {
        "single": faulty(EVERY, given.seed, given.per_fault),
        "double": doubled(EVERY, given.seed + 1, given.doubled),
        "wide": class_wide(EVERY, given.seed + 2, given.wide),
        "healthy": healthy(EVERY, given.seed + 3, given.per_pair),
        "monitored": monitored(EVERY, given.seed + 4, given.per_pair),
    }
    if given.only:
        from .trials import fault_of

        keep = given.only
        plans["healthy"] = plans["healthy"] if keep == "healthy" else []
        plans["monitored"] = plans["monitored"] if keep in ("healthy", "monitored") else []
        if keep != "faults":
            plans["double"], plans["wide"] = [], []
            plans["single"] = [t for t in plans["single"] if fault_of(t).name == keep]
    begun = time.perf_counter()
    found = {kind: [_outcome(v) for v in _ran(kind, run, trials, given.workers)] for kind, trials in plans.items()}
    types = _ran("types", check_up, [] if given.only else TYPES.split(), given.workers)
    text = page(found, types, ASIDE, given.seed, time.perf_counter() - begun)
    given.output.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{given.output}\n")


def _ran(kind: str, work: Callable[[Any], Any], items: Sequence[Any], workers: int) -> list[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("fork")
    found = []
    with Progress(*columns) as progress, ProcessPoolExecutor(workers, mp_context=context) as pool:
        task = progress.add_task(f"{kind:9}", total=len(items))
        for value in pool.map(work, items, chunksize=2):
            found.append(value)
            progress.advance(task)
    return found


def _outcome(value: dict[str, Any]) -> Outcome:
    planted = tuple(Planted(**item) for item in value["trial"].pop("planted"))
    trial = Trial(**value.pop("trial"), planted=planted)
    return Outcome(trial, **value)


if __name__ == "__main__":
    main()
