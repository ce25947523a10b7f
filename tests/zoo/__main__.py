"""``make zoo``: discover every model type of the installed transformers and write docs/zoo.md."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import warnings
from functools import partial
from pathlib import Path

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .build import NotBuiltError, model_types, specimen
from .examine import Row, examined
from .pool import rows
from .table import written

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "rheoscope-zoo"


def main() -> None:
    """Run the zoo; rows that stand in the cache are not computed again."""
    parser = argparse.ArgumentParser(prog="zoo", description=__doc__)
    parser.add_argument("types", nargs="*", help="model types; all without any")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of one type")
    parser.add_argument("--cache", type=Path, default=CACHE / "rows.jsonl")
    parser.add_argument("--fresh", action="store_true", help="forget the cache")
    parser.add_argument("--recipes", type=Path, help="rows of an earlier run, to build as it did")
    parser.add_argument("--output", type=Path, default=Path("docs/zoo.md"))
    given = parser.parse_args()
    _quiet()
    _warmed_up()
    given.cache.parent.mkdir(parents=True, exist_ok=True)
    if given.fresh:
        given.cache.unlink(missing_ok=True)
    known = _cached(given.cache)
    names = given.types or model_types()
    missing = [name for name in names if name not in known]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress, given.cache.open("a") as cache:
        task = progress.add_task("zoo", total=len(missing))
        recipes = _cached(given.recipes) if given.recipes else {}
        work = partial(_examined, recipes=recipes)
        for row in rows(missing, workers=given.workers, seconds=given.seconds, work=work):
            known[row["type"]] = row
            cache.write(json.dumps(row) + "\n")
            cache.flush()
            progress.update(task, advance=1, description=f"{row['type'][:28]:28}")
    table = [known[name] for name in names if name in known]
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(written(table))
    sys.stdout.write(f"{given.output}\n")


def _warmed_up() -> None:
    """Import, before the forks, what most types need: each child would do it again."""
    for name in ("gpt2", "t5", "bert", "vit", "clip", "whisper", "detr"):
        with contextlib.suppress(NotBuiltError):
            specimen(name)


def _examined(name: str, recipes: dict[str, Row]) -> Row:
    return examined(name, recipes.get(name))


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.CRITICAL)


def _cached(path: Path) -> dict[str, Row]:
    if not path.exists():
        return {}
    found = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {row["type"]: row for row in found}


if __name__ == "__main__":
    main()
