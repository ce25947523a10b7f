"""Draw what some rules see in a good run and in a bad one, measured on the reference transformer: docs/images/rules/*.svg.

    python benchmarks/pictures.py [docs]

Each case plants one fault. It is refused where the rule does not find the fault, or finds one in the sound model.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.frames import block_states
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.short_run import adamw, in_memory
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import nn

BLOCKS, CONTEXT = 8, 16
TOKENS = torch.randint(256, (4, CONTEXT + 1), generator=torch.Generator().manual_seed(0))
BATCH = (TOKENS[:, :-1], TOKENS[:, 1:])
Values = Callable[[Tables], Sequence[float]]


@dataclass(frozen=True)
class Case:
    """One picture.

    Attributes:
        code: of the finding.
        quantity: what is drawn over blocks.
        values: of a recording, one a block.
        bad: returns the recording with the fault.
        good: returns that without.
        is_log: whether the axis is logarithmic.
    """

    code: str
    quantity: str
    values: Values
    bad: Callable[[], Recording]
    good: Callable[[], Recording]
    is_log: bool = True


def model(**choices: object) -> ReferenceTransformer:
    """Return a small reference transformer."""
    options = {"activation": "relu", "norm_placement": "pre", **choices}
    return ReferenceTransformer(
        Architecture(n_blocks=BLOCKS, width=32, n_heads=2, context=CONTEXT, **options),  # type: ignore[arg-type]
        seed=0,
    )


def check_up(change: Callable[[nn.Module], object] = lambda _: None, **choices: object) -> Recording:
    """Return the check-up of a model with a fault."""
    built = model(**choices)
    with torch.no_grad():
        change(built)
    return examine(built, BATCH)


def scaled(name: str, factor: float) -> Callable[[nn.Module], object]:
    """Return what multiplies a parameter."""
    return lambda built: dict(built.named_parameters())[name].mul_(factor)


def detached(built: nn.Module) -> None:
    """Cut the gradient of one MLP."""
    dict(built.named_modules())["blocks.4.mlp"].register_forward_hook(lambda *called: called[-1].detach())


def switched_off(built: nn.Module) -> None:
    """Push the hidden units of one MLP below 0."""
    dict(built.named_parameters())["blocks.4.mlp.up.bias"].fill_(-10.0)


def trained(factor: float) -> Recording:
    """Return two steps of AdamW, with one block at ``factor`` times the learning rate of the others."""
    built = model().train()
    optimizer = adamw(built, 1e-4)
    mine = {id(p) for p in built.blocks[4].parameters()}
    rest = optimizer.param_groups[0]["params"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in rest if id(p) not in mine]},
            {"params": [p for p in rest if id(p) in mine], "lr": 1e-4 * factor},
        ],
        lr=1e-4,
    )
    with tempfile.TemporaryDirectory() as place:
        with attach(built, optimizer, every=1, folder=Path(place) / "run") as probe:
            for _ in range(2):
                loss = built(*BATCH).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                probe.step(loss)
        return in_memory(probe.recording)


def weights(tables: Tables) -> Sequence[float]:
    """Return the RMS of each block's first MLP matrix."""
    rows = tables.parameters
    return list(rows[rows["name"].str.endswith("mlp.up.weight")].sort_values("block")["weight_rms"])


def of_branch(frame: str, column: str, branch: str) -> Values:
    """Return a column of a frame of the tables, of one branch by block."""

    def values(tables: Tables) -> Sequence[float]:
        rows = getattr(tables, frame)()
        rows = rows[rows["branch"] == branch] if branch else rows
        return list(rows.groupby("block")[column].mean())

    return values


def checks(name: str, branch: str) -> Values:
    """Return what a check observed in one branch by block."""

    def values(tables: Tables) -> Sequence[float]:
        rows = tables.identities
        return list(rows[(rows["check"] == name) & (rows["branch"] == branch)].sort_values("block")["observed"])

    return values


def gradients(tables: Tables) -> Sequence[float]:
    """Return the RMS of the gradient of each block's state."""
    return list(block_states(tables.gradient_profile())["rms"])


CASES = (
    Case("weight-scale", "RMS of mlp.up.weight", weights, lambda: check_up(scaled("blocks.4.mlp.up.weight", 8)), check_up),
    Case("gradient-detached", "gradient through the branch / demanded", checks("gradient_conservation", "mlp"),
         lambda: check_up(detached), check_up, is_log=False),
    Case("attention-logits", "std of attention's logits", of_branch("attention", "logit_std", "attention"),
         lambda: check_up(scaled("blocks.4.attention.query.weight", 30)), check_up),
    Case("dead-units", "share of zeros in the hidden layer", of_branch("hidden_layers", "zero_share", "mlp"),
         lambda: check_up(switched_off), check_up, is_log=False),
    Case("gradient-growth", "RMS of the gradient behind a block", gradients,
         lambda: check_up(norm_placement="none", init="xavier"),
         lambda: check_up(init="xavier")),
    Case("update-ratio", "update RMS / weight RMS", of_branch("update_ratios", "ratio", ""), lambda: trained(20.0),
         lambda: trained(1.0)),
)  # fmt: skip

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 150, 64, 34, 36
GOOD, BAD, INK = "#00795A", "#C24E00", "#6E7781"


def drawn(case: Case, good: Sequence[float], bad: Sequence[float]) -> str:
    """Return both profiles on one scale, side by side, as SVG."""
    every = [value for value in (*good, *bad) if math.isfinite(value) and (value > 0 or not case.is_log)]
    low, high = (min(every), max(every)) if case.is_log else (min(0.0, *every), max(1.0, *every))
    if case.is_log:
        low, high = math.log10(low) - 0.15, math.log10(high) + 0.15

    def height(value: float) -> float:
        at = math.log10(value) if case.is_log else value
        return TOP + HEIGHT * (1 - (at - low) / (high - low))

    whole = 2 * WIDTH + GAP + LEFT + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {TOP + HEIGHT + 34}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{case.quantity} by block, in a good and in a bad model</title>",
    ]
    for side, (values, colour, word) in enumerate(((good, GOOD, "good"), (bad, BAD, "bad"))):
        start = LEFT + side * (WIDTH + GAP)
        step = WIDTH / len(values)
        parts.append(f'<text x="{start}" y="20" fill="{colour}" font-weight="600">{word}</text>')
        parts.append(f'<path d="M{start} {TOP}V{TOP + HEIGHT}H{start + WIDTH}" fill="none" stroke="{INK}"/>')
        for block, value in enumerate(values):
            top = height(value) if value > 0 or not case.is_log else TOP + HEIGHT
            x, tall = start + step * (block + 0.2), max(1.5, TOP + HEIGHT - top)
            box = f'x="{x:.1f}" y="{TOP + HEIGHT - tall:.1f}" width="{0.6 * step:.1f}" height="{tall:.1f}"'
            parts.append(f'<rect {box} fill="{colour}"/>')
            parts.append(f'<text x="{x + 0.3 * step:.1f}" y="{TOP + HEIGHT + 15}" text-anchor="middle">{block}</text>')
    for value in (low, high):
        said = 10**value if case.is_log else value
        y = TOP + HEIGHT * (1 - (value - low) / (high - low))
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{said:.2g}</text>')
    parts.append(f'<text x="{LEFT}" y="{TOP + HEIGHT + 31}">{case.quantity}, by block</text></svg>')
    return "\n".join(parts) + "\n"


def main() -> None:
    """Measure every case and draw it."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1] if sys.argv[1:] else "docs") / "images" / "rules"
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        good, bad = case.good(), case.bad()
        found = [{f.code for f in diagnose(each) if f.severity != "info"} for each in (good, bad)]
        if case.code in found[0] or case.code not in found[1]:
            raise SystemExit(f"{case.code}: the sound model has {sorted(found[0])}, the other {sorted(found[1])}")
        path = folder / f"{case.code}.svg"
        path.write_text(drawn(case, case.values(Tables(good)), case.values(Tables(bad))), encoding="utf-8")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
