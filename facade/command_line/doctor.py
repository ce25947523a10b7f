"""``rheoscope doctor``: what is installed here, what is slow and why, what to install."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the parts as JSON.")] = False,
) -> None:
    """Say what is installed here, which kernels and browsers serve, what is slow and why, and what to install."""
    from json import dumps

    from rheoscope.probes.installation import installation
    from rheoscope.reports.health_screen import pictures, show_health

    rows = [*installation(), *pictures()]
    if json:
        typer.echo(dumps(rows, indent=1))
    else:
        show_health(rows)
