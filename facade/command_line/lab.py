"""``rheoscope lab``: answer questions about design choices by controlled experiments, beside the published results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def lab(
    name: Annotated[str, typer.Argument(help="Name of an experiment, or list.")] = "list",
    quick: Annotated[bool, typer.Option("--quick", help="A smaller size, two seeds, fewer learning rates.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the report: HTML, or by suffix .json, .md or .txt.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where runs are kept, and gone on with; by default lab-runs/NAME.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; two with --quick.")] = 3,
    factory: Annotated[
        str,
        typer.Option(help="module:function(width, depth) that returns (model, batch); for scale-up and coordinates."),
    ] = "",
    sizes: Annotated[
        str, typer.Option(help="Sizes WIDTHxDEPTH to be trained, at least four (coordinates: three).")
    ] = "64x2,96x3,128x4,192x6",
    target: Annotated[str, typer.Option(help="Size WIDTHxDEPTH that scale-up foretells.")] = "1024x24",
) -> None:
    """Carry out one experiment, or list them; every architecture is judged at its own best learning rate.

    Two work on your own model: scale-up carries what grows with the size on to a larger one, coordinates tells which activations
    keep their size.
    """
    if name == "list":
        _list()
        return
    if name in ("scale-up", "coordinates"):
        _on_own_model(name, factory, [_size(each) for each in sizes.split(",")], _size(target), seeds)
        return
    from rheoscope.lab.experiment import Setting
    from rheoscope.lab.experiments import experiment
    from rheoscope.reports.report import write_report
    from rheoscope.reports.terminal import progress, show_study

    chosen = experiment(name)
    size = "quick" if quick else "full"
    place = folder or Path("lab-runs") / f"{name}-{size}"
    with progress() as shown:
        bar = shown.add_task(name, total=None)
        setting = Setting(
            place,
            is_quick=quick,
            seeds=tuple(range(min(seeds, 2) if quick else seeds)),
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
        study = chosen.study(setting)
    show_study(study)
    if output is not None:
        typer.echo(f"Report: {write_report(study, output)}")


def _on_own_model(name: str, factory: str, sizes: list[tuple[int, int]], target: tuple[int, int], seeds: int) -> None:
    from rheoscope.lab.built import imported
    from rheoscope.lab.coordinates import coordinate_check
    from rheoscope.lab.scale_up import scale_up
    from rheoscope.reports.terminal import progress, show_table

    make = imported(factory)
    if name == "coordinates":
        by_width = len({depth for _, depth in sizes}) == 1
        check = coordinate_check(
            lambda size: make(size, sizes[0][1]) if by_width else make(sizes[0][0], size),
            [width if by_width else depth for width, depth in sizes],
            axis="width" if by_width else "depth",
            seeds=range(seeds),
        )
        last = check.exponents[check.exponents["step"] == check.exponents["step"].max()]
        show_table(last, f"RMS ~ {check.axis}^exponent after {int(last['step'].max())} steps")
        return
    with progress() as shown:
        bar = shown.add_task(name, total=None)
        told = scale_up(
            make,
            sizes,
            target,
            seeds=range(seeds),
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    show_table(told.measured, "Measured")
    show_table(told.predicted, f"At {told.n_parameters:,} parameters, with 90 % bands")


def _size(text: str) -> tuple[int, int]:
    width, _, depth = text.strip().partition("x")
    if not (width.isdecimal() and depth.isdecimal()):
        raise typer.BadParameter(f"Expected a size WIDTHxDEPTH such as 128x4, got {text!r}.")
    return int(width), int(depth)


def _list() -> None:
    from rheoscope.lab.experiments import listing
    from rheoscope.reports.terminal import show_table

    show_table(listing(), "Experiments")
