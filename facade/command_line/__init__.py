"""The commands, one file each; this one lists them and turns Rheoscope's errors into one sentence and an exit code."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rheoscope.probes.errors import RecordingError, RheoscopeError

from . import (
    attribute,
    autopsy,
    bisect,
    check,
    compare,
    demo,
    doctor,
    examine,
    join,
    lab,
    preflight,
    report,
    run,
    watch,
    what_if,
)

USAGE_ERROR, UNREADABLE = 2, 3

app = typer.Typer(
    name="rheoscope",
    help="Show how signal and gradient flow through a PyTorch transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    demo.demo,
    examine.examine,
    attribute.attribute,
    bisect.bisect,
    report.report,
    compare.compare,
    check.check,
    join.join,
    lab.lab,
    what_if.what_if,
    preflight.preflight,
    autopsy.autopsy,
    doctor.doctor,
    watch.watch,
):
    app.command()(command)
# What stands behind the script is the script's.
app.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(run.run)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"rheoscope {version('rheoscope')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Show how signal and gradient flow through a PyTorch transformer."""


def main() -> None:
    """Run the command line; exit 2 on a wrong use, 3 on a recording that cannot be read."""
    try:
        launch = None
        try:
            app()
        except run.Launch as wanted:
            launch = wanted
        if launch is not None:
            launch.go()
    except RecordingError as error:
        _say(error)
        sys.exit(UNREADABLE)
    except RheoscopeError as error:
        _say(error)
        sys.exit(USAGE_ERROR)


def _say(error: RheoscopeError) -> None:
    # What a library said of a damaged file may span lines.
    typer.echo(f"rheoscope: {' '.join(str(error).split())}", err=True)
