"""``make lab``: carry out every experiment at its quick size and write what was measured beside what is published."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from rheoscope.lab.experiment import Experiment, Result, Setting
from rheoscope.lab.experiments import NAMES, experiment
from rich.progress import Progress

HEAD = """# What the lab measured, beside what is published

Written by `make lab`: every experiment of `rheoscope lab list` at its quick size ({seeds} seeds, few learning rates),
{minutes:.0f} minutes of wall time, in which runs that stood in the folder from before were not carried out again. *Agrees*: the
95 % interval over seeds lies in the range that the published result allows. *Differs*: it lies outside. *Not settled at this
scale*: it lies on both sides of the range's end, or the effect is known to need more than such a run.
"""


def main() -> None:
    """Carry out all experiments, or those named; exit 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*", default=list(NAMES), help="names of experiments")
    parser.add_argument("--runs", type=Path, default=Path("lab-runs"), help="where runs are kept and gone on with")
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    started, parts, has_failed = time.perf_counter(), [], False
    with Progress() as shown:
        whole = shown.add_task("all", total=len(given.only))
        for name in given.only:
            bar = shown.add_task(name, total=None)
            setting = Setting(
                given.runs / f"{name}-quick",
                is_quick=True,
                seeds=tuple(range(given.seeds)),
                on_progress=lambda done, total, _, bar=bar: shown.update(bar, completed=done, total=total),
            )
            began = time.perf_counter()
            try:
                result = experiment(name).carry_out(setting)
                parts.append(_section(experiment(name), result, time.perf_counter() - began))
            except Exception as error:  # noqa: BLE001 - the other experiments are carried out all the same
                has_failed = True
                traceback.print_exc()
                parts.append(f"## {name}\n\nFailed: {type(error).__name__}: {error}\n")
            shown.update(whole, advance=1)
    minutes = (time.perf_counter() - started) / 60
    given.output.write_text("\n".join([HEAD.format(seeds=given.seeds, minutes=minutes), *parts]), encoding="utf-8")
    sys.stdout.write(f"{given.output}\n")
    sys.exit(has_failed)


def _section(what: Experiment, result: Result, seconds: float) -> str:
    lines = [f"## {what.name}", "", f"{what.question} ({what.source}; {seconds / 60:.1f} min)", ""]
    lines += ["| measured | here | published | source | verdict |", "|---|---|---|---|---|"]
    lines += [_row(c.what, c.measured, c.published, c.source, c.verdict) for c in result.claims]
    variants = result.shown_variants()
    if len(variants):
        lines += ["", _row(*variants.columns), "|---" * len(variants.columns) + "|"]
        lines += [_row(*(_cell(value) for value in row)) for row in variants.itertuples(index=False, name=None)]
    lines += ["", *(f"{note}\n" for note in result.notes)]
    return "\n".join(lines)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _cell(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


if __name__ == "__main__":
    main()
