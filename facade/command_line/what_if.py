"""``rheoscope what-if``: change one design choice of a model and compare it with itself."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Placement(StrEnum):
    """Where norms may stand."""

    pre = "pre"
    post = "post"
    double = "double"
    reordered = "reordered"
    none = "none"


class Kind(StrEnum):
    """What norms may be."""

    layernorm = "layernorm"
    rmsnorm = "rmsnorm"


def what_if(
    target: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face config.json, its folder or a model type such as gpt2 (random weights, nothing is "
            "downloaded); or module:function that returns (model, batch)."
        ),
    ],
    norm_placement: Annotated[Placement | None, typer.Option(help="Where every branch is to be normed.")] = None,
    norm_kind: Annotated[Kind | None, typer.Option(help="Of every norm around the residual stream.")] = None,
    no_biases: Annotated[
        bool, typer.Option("--no-biases", help="Take the biases of projections and norms away.")
    ] = False,
    qk_norm: Annotated[
        bool | None, typer.Option("--qk-norm/--no-qk-norm", help="Norm queries and keys, or do not.")
    ] = None,
    soft_cap: Annotated[float | None, typer.Option(help="Bound of attention's logits; 0 takes one away.")] = None,
    skip_scale: Annotated[float | None, typer.Option(help="Factor of the skip in every residual add.")] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Training steps of each copy from fresh weights; 0 for none.")
    ] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of fresh weights.")] = 3,
    blocks: Annotated[int | None, typer.Option(min=1, help="Build the config with so many blocks.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("what-if.html"),
) -> None:
    """Change one design choice of a model, examine both, retrain both from fresh weights, and write the comparison."""
    from rheoscope.lab.built import built, maker
    from rheoscope.lab.what_if import what_if as asked
    from rheoscope.reports.report import write_report
    from rheoscope.reports.terminal import progress

    model, batch = built(target, n_blocks=blocks)
    with progress() as shown:
        bar = shown.add_task(target, total=None)
        comparison = asked(
            model,
            batch,
            norm_placement=None if norm_placement is None else norm_placement.value,
            norm_kind=None if norm_kind is None else norm_kind.value,
            biases=False if no_biases else None,
            qk_norm=qk_norm,
            soft_cap=soft_cap,
            skip_scale=skip_scale,
            n_steps=steps,
            make=maker(target, n_blocks=blocks),
            seeds=range(seeds),
            on_progress=lambda done, total, text: shown.update(bar, completed=done, total=total, description=text),
        )
    for note in comparison.notes:
        typer.echo(note)
    typer.echo(f"Comparison: {write_report(comparison, output)}")
