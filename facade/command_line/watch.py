"""``rheoscope watch``: look at a run while it goes on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .check import FailOn

if TYPE_CHECKING:
    from rheoscope.alarm import Alarm
    from rheoscope.diagnostics.finding import Finding

MOST_UNREADABLE = 5  # readings in a row: a run that is just being closed moves its files once
SHARE = 3  # a reading may take one part in so many of the time between two


def watch(
    recording: Annotated[Path, typer.Argument(help="Folder of the recording; it may be of a run that begins later.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two readings.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print what is there now, and end.")] = False,
    fail_on: Annotated[FailOn, typer.Option(help="Lowest severity that --exec and --json are for.")] = FailOn.warning,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            help="Start this for every new finding: it gets the finding as JSON on its input, and RHEOSCOPE_CODE, "
            "RHEOSCOPE_SENTENCE and others in its environment. No shell.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print each new finding as a line of JSON, and no view.")
    ] = False,
) -> None:
    """Show depth profiles and findings of a run while it goes on, from its log alone; ends when the run is closed."""
    from rheoscope.alarm import Alarm, as_line, by_command
    from rheoscope.reports.live import live, print_view

    alarms = [] if command is None else [Alarm(by_command(command), fail_on.value)]
    if json:

        def tell(finding: Finding, folder: Path) -> list[str]:
            typer.echo(as_line(finding, folder))
            sys.stdout.flush()
            return []

        alarms.append(Alarm(tell, fail_on.value))
    if once:
        shown, _, failed = _read(recording, alarms)
        if not json:
            print_view(shown)
        for sentence in failed:
            typer.echo(sentence, err=True)
        return
    try:
        if json:
            _follow(recording, every, alarms, lambda _: None)
        else:
            with live() as update:
                _follow(recording, every, alarms, update)
    except KeyboardInterrupt:
        typer.echo("")


def _follow(recording: Path, every: float, alarms: list[Alarm], update: Callable[[Any], None]) -> None:
    from rheoscope.probes.errors import RecordingError
    from rheoscope.reports.live import waiting

    n_unreadable, seen, told = 0, object(), False
    while True:
        begun, state = time.monotonic(), _state(recording)
        if not (recording / "manifest.json").is_file():
            if not told:
                update(waiting(str(recording), has_stages=(recording / "stages").is_dir()))
            told = True
        elif state != seen:
            try:
                shown, is_closed, failed = _read(recording, alarms)
            except RecordingError:
                # Closing a run turns its streams into tables: a reading between the two finds neither.
                n_unreadable += 1
                if n_unreadable >= MOST_UNREADABLE:
                    raise
            else:
                n_unreadable, seen = 0, state
                update(shown)
                for sentence in failed:
                    typer.echo(sentence, err=True)
                if is_closed:
                    return
        time.sleep(max(every, SHARE * (time.monotonic() - begun)))


def _state(recording: Path) -> tuple[tuple[str, int, int], ...]:
    """Return names, sizes and times of the run's files: they change whenever something is written."""
    found = []
    for path in sorted(recording.glob("*")):
        try:
            status = path.stat()
        except OSError:
            continue  # just moved
        found.append((path.name, status.st_size, status.st_mtime_ns))
    return tuple(found)


def _read(recording: Path, alarms: list[Alarm]) -> tuple[Any, bool, list[str]]:
    """Return the view, whether the run has ended, and what failed of the alarms."""
    from rheoscope.diagnostics.diagnosis import diagnose
    from rheoscope.diagnostics.latest import latest
    from rheoscope.probes.recording import Recording
    from rheoscope.reports.live import view

    found = Recording.load(recording)
    stand, diagnosis = latest(found), diagnose(found)
    failed = [sentence for alarm in alarms for sentence in alarm.sound(diagnosis, recording)]
    return view(stand, diagnosis), stand.is_closed, failed
