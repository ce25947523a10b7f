"""``rheoscope run``: run a training script as it is, with probes on what it trains."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rheoscope.probes.errors import RecordingExistsError, RheoscopeError
from rheoscope.probes.integrations.after_import import after_import
from rheoscope.probes.integrations.program import Program

if TYPE_CHECKING:
    from rheoscope.probes.integrations.script import ScriptProbes, Taken

NOTHING = (
    "no training was seen in this process, so nothing is recorded: {}. Processes that a script starts itself are not seen: "
    "run each of them under probes, with torchrun -m rheoscope run. Nor is a step that is compiled with its backward."
)


class Launch(BaseException):
    """What is to be run, once the command line has read its options."""

    def __init__(self, program: Program, folder: Path, every: int, report: Path | None) -> None:
        """Keep the options."""
        super().__init__()
        self._program, self._folder, self._every, self._report = program, folder, every, report
        self._probes: ScriptProbes | None = None
        self._process = os.getpid()
        self._is_over = False

    def go(self) -> None:
        """Run the program; it ends as it would have ended without probes."""
        leave = after_import("torch", self._watch)
        try:
            self._program.run()
        except SystemExit as error:
            self._ends(leave, error)
            raise
        except BaseException as error:
            own = self._program.own(error.__traceback__)
            if isinstance(error, RheoscopeError) and own is None:
                raise  # there is no such module
            # First, as without us: what is said of the report comes after it.
            sys.excepthook(type(error), error.with_traceback(own), own)
            sys.excepthook = _shown_already
            self._ends(leave, error)
            if isinstance(error, RheoscopeError):
                sys.exit(1)  # the program's own, which the command line would take for one of ours
            raise
        self._ends(leave, None)

    def _ends(self, leave: object, error: BaseException | None) -> None:
        if callable(leave):
            leave()
        if self._process != os.getpid():
            return  # a process that the program forked
        failed = None if isinstance(error, SystemExit) and not error.code else error
        self._report_on(failed)

    def _watch(self) -> None:
        """Begin, inside the program's import of torch, which must succeed whatever happens here."""
        try:
            self._start()
        except Exception as problem:  # noqa: BLE001 - nothing of ours may end the program
            self._is_over = True
            told = f"{type(problem).__name__}: {problem}"
            _say(f"nothing is recorded: {told}. A script that imports Rheoscope itself must import torch before.")

    def _start(self) -> None:
        from rheoscope.probes.integrations.script import ScriptProbes

        self._speak_on_stderr()
        self._probes = ScriptProbes(
            self._folder,
            label=self._program.name,
            say=_say,
            options={"every": self._every},
            at_hard_exit=lambda: self._report_on(None),
        )
        self._probes.start()

    def _speak_on_stderr(self) -> None:
        """Keep our warnings out of the program's own log, which may go to its standard output."""
        logger = logging.getLogger("rheoscope")
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("rheoscope: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False

    def _report_on(self, error: BaseException | None) -> None:
        if self._is_over:
            return
        self._is_over = True
        probes = self._probes
        taken: Sequence[Taken] = []
        try:
            taken = [] if probes is None else probes.finish(error)
        except Exception as problem:  # noqa: BLE001 - the program has ended in its own way: ours must not change it
            _say(f"what was recorded could not be closed: {' '.join(str(problem).split())}")
            return
        if not taken:
            steps = 0 if probes is None else probes.n_stepped
            _say(
                NOTHING.format(
                    f"{steps} optimizer steps, of no module that could be measured" if steps else "no optimizer stepped"
                )
            )
        for number, each in enumerate(taken, start=1):
            try:
                self._write(number, each)
            except Exception as problem:  # noqa: BLE001 - as above
                _say(f"no report of {each.name}: {' '.join(str(problem).split())}")

    def _write(self, number: int, taken: Taken) -> None:
        from rheoscope.reports.report import write_report

        if taken.recording is None:
            return
        if not taken.n_steps:
            _say(f"{taken.name}: no step ended; what was seen of the first is in {taken.folder}")
            return
        path = taken.folder / "report.html"
        if self._report is not None:
            path = self._report if number == 1 else self._report.with_stem(f"{self._report.stem}-{number}")
        _say(f"{taken.name}, {taken.n_steps:,} steps. Report: {write_report(taken.recording, path)}")


def run(
    script: Annotated[str, typer.Argument(help="The training script; with -m, the module.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its own arguments.")] = None,
    module: Annotated[bool, typer.Option("-m", help="Run a module, as python -m does.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Where the recording is written; by default runs/<date and time>.")
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="A step in so many is sampled in full.")] = 10,
    report: Annotated[
        Path | None, typer.Option(help="The report to write; by default report.html in the folder.")
    ] = None,
) -> None:
    """Run a training script as it is, with probes on every model that it trains; at its end there is a report.

    Options of this command stand before the script, those of the script behind it. Under torchrun: torchrun -m rheoscope run
    SCRIPT. What is said goes to standard error; the script's output and exit code are its own.
    """
    raise Launch(
        Program(script, arguments or [], is_module=module), _folder(folder), every, report and report.absolute()
    )


def _folder(given: Path | None) -> Path:
    """Return where to write, wherever the program goes; one that torchrun starts again writes beside what it wrote before."""
    if given is None:
        return Path("runs").absolute() / datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    folder = given.absolute()
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts != "0":
        return folder.with_name(f"{folder.name}-restart-{restarts}")
    if (folder / "manifest.json").exists() and os.environ.get("RANK", "0") == "0":
        raise RecordingExistsError(
            f"Expected a folder without a recording, got {str(given)!r}, which holds one. Pass another --folder."
        )
    return folder


def _say(sentence: str) -> None:
    typer.echo(f"rheoscope: {' '.join(sentence.split())}", err=True)


def _shown_already(*_: object) -> None:
    """Show nothing: the program's exception was shown."""
