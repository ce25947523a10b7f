"""Make spikes whose cause is planted, and ask bisect for it: python benchmarks/spikes.py [page] [--seed N] [--each N]."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.tasks import task
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.recorder import attach
from rheoscope.probes.spikes.bisection import Bisection, bisect
from rheoscope.probes.spikes.bundle import bundles_in
from rich.progress import Progress
from torch import Tensor, nn
from verdicts.score import wilson

MOST_RUNS = 6  # for each spike
SPIKE_AFTER, LONGEST = 150, 60  # steps before something is planted, and steps within which the loss spikes or not
DESIGNS: tuple[dict[str, Any], ...] = (
    {},
    {"norm_placement": "double", "norm_kind": "rmsnorm"},
    {"norm_kind": "rmsnorm", "biases": False, "activation": "swiglu", "positions": "rotary"},
    {"norm_placement": "post"},
    {"is_parallel": True},
)
BASE = Architecture(4, 32, 4, mlp_width=64, vocabulary=256, context=24)


@dataclass
class Loop:
    """One training loop, as it stands when something is planted."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    chance: random.Random
    autocast: torch.dtype | None = None
    batch: Callable[[Tensor], Tensor] = field(default=lambda tokens: tokens)
    growth: float = 1.0


def high_rate(loop: Loop) -> None:
    """Multiply every learning rate."""
    factor = loop.chance.choice((30, 60, 100))
    for group in loop.optimizer.param_groups:
        group["lr"] *= factor


def bad_batch(loop: Loop) -> None:
    """Give one step tokens that are not text: noise, one token again and again, or text backwards byte by byte."""
    kind = loop.chance.choice(("noise", "other half", "sorted"))

    def spoilt(tokens: Tensor) -> Tensor:
        loop.batch = lambda same: same
        if kind == "noise":
            return torch.randint_like(tokens, 256)
        return (tokens + 128) % 256 if kind == "other half" else tokens.sort(-1, descending=True).values

    loop.batch = spoilt


def low_precision(loop: Loop) -> None:
    """Run forwards in 16 bits from here on, where the final norm's input or a hidden layer is too large for them."""
    loop.autocast = torch.float16


def hot_group(loop: Loop) -> None:
    """Multiply the learning rate of one parameter group."""
    groups = [group for group in loop.optimizer.param_groups if group["params"]]
    loop.chance.choice(groups)["lr"] *= loop.chance.choice((100, 300))


def creeping_rate(loop: Loop) -> None:
    """Let every learning rate grow from step to step, until training is no longer stable."""
    loop.growth = loop.chance.choice((1.15, 1.25, 1.4))


PLANTS: dict[str, tuple[str, Callable[[Loop], None]]] = {
    "every learning rate, risen": ("learning rate", high_rate),
    "every learning rate, creeping": ("learning rate", creeping_rate),
    "batch": ("batch", bad_batch),
    "precision": ("precision", low_precision),
    "parameter group": ("parameter group", hot_group),
}


def spiked(cause: str, seed: int, folder: Path) -> Bisection | None:
    """Train, plant, and bisect the first spike; None where the loss did not spike."""
    chance = random.Random(seed)
    design = replace(BASE, **chance.choice(DESIGNS))
    model = ReferenceTransformer(design, seed)
    planted = PLANTS[cause][1]
    if planted is low_precision:
        _blow_up(model.blocks[chance.randrange(len(model.blocks))], chance.uniform(1e6, 1e7))
    optimizer = torch.optim.AdamW(
        _groups(model, chance),
        lr=2e-3,
        betas=(0.9, 0.95),
        weight_decay=0.01,
    )
    batches = task("text")(design.vocabulary, 8, design.context, seed)
    loop = Loop(model, optimizer, chance)
    clip = chance.choice((None, 1.0))
    with attach(model, optimizer, every=1000, folder=folder, bundle=True) as probe:
        for step in range(SPIKE_AFTER + LONGEST):
            if step == SPIKE_AFTER:
                planted(loop)
            for group in optimizer.param_groups:
                group["lr"] *= loop.growth
            tokens = loop.batch(next(batches))
            with torch.autocast("cpu", loop.autocast or torch.bfloat16, enabled=loop.autocast is not None):
                loss = model(tokens[:, :-1], tokens[:, 1:]).loss
            optimizer.zero_grad()
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            probe.step(loss)
            if bundles_in(folder) or not torch.isfinite(loss):
                break
    found = bundles_in(folder)
    return bisect(found[0], model) if found else None


def _blow_up(block: nn.Module, size: float) -> None:
    """Make the hidden layer of one block large, and what reads it small, and train neither: 32 bits hold both, 16 do not."""
    for name, parameter in block.mlp.named_parameters():  # type: ignore[union-attr, operator]
        with torch.no_grad():
            parameter.mul_(1 / size if name == "down.weight" else 1.0 if name == "down.bias" else size)
        parameter.requires_grad_(False)


def _groups(model: nn.Module, chance: random.Random) -> list[dict[str, Any]]:
    """Cut the parameters into groups as training scripts do: by kind, or by block."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if chance.random() < 0.5:
        matrices = [p for n, p in named if p.dim() > 1 and "embedding" not in n]
        embeddings = [p for n, p in named if "embedding" in n]
        rest = [p for n, p in named if p.dim() < 2]
        return [{"params": group} for group in (matrices, embeddings, rest) if group]
    cut = [[p for n, p in named if n.startswith(f"blocks.{i}.")] for i in range(4)]
    return [{"params": group} for group in (*cut, [p for n, p in named if not n.startswith("blocks.")])]


HEAD = """# Spikes with a planted cause

Written by `python benchmarks/spikes.py docs/spikes.md`. Reference transformers of five designs (4 blocks, 32 wide) learn the
standard library's source for {after} steps by AdamW, with and without clipping, their parameters grouped by kind or by block;
then something is planted: every learning rate times 30 to 100, one parameter group's times 100 or 300, one batch that is no
text, or forwards in 16 bits where a hidden layer does not fit; or every learning rate grows by 15 to 40 % at each step from there
on. A run counts when its loss spikes, by step {last}. *Removed*: `bisect` found a change that removes the spike. *Named*: the
cause that it names is the one planted. Shares with 95 % Wilson intervals.

| planted | spikes | removed | named | named otherwise |
|---|---|---|---|---|
"""


def main() -> None:
    """Make the spikes and write the page."""
    parser = argparse.ArgumentParser(prog="spikes", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=10, help="spikes of each cause")
    given = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    rows: dict[str, list[Bisection]] = {cause: [] for cause in PLANTS}
    n_runs = 0
    with Progress() as shown:
        bar = shown.add_task("spikes", total=given.each * len(PLANTS))
        for cause, attempt in product(PLANTS, range(given.each * MOST_RUNS)):
            if len(rows[cause]) == given.each:
                continue
            n_runs += 1
            with tempfile.TemporaryDirectory() as folder:
                found = spiked(cause, given.seed * 1000 + attempt, Path(folder) / "run")
            if found is not None:
                rows[cause].append(found)
                shown.advance(bar)
                if found.cause is None or found.cause.kind != PLANTS[cause][0]:
                    shown.print(f"{cause}, seed {given.seed * 1000 + attempt}: {found.sentence}")
    of_kind = {cause: [(PLANTS[cause][0], found) for found in several] for cause, several in rows.items()}
    every = [pair for pairs in of_kind.values() for pair in pairs]
    lines = [_row(cause, pairs) for cause, pairs in of_kind.items()]
    text = HEAD.format(after=SPIKE_AFTER, last=SPIKE_AFTER + LONGEST) + "\n".join([*lines, _row("all", every)])
    text += f"\n\nSeed {given.seed}, {n_runs} runs, {(time.process_time() - begun) / 60:.0f} CPU minutes.\n"
    if given.page is None:
        sys.stdout.write(text)
    else:
        given.page.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{given.page}\n")


def _row(name: str, found: list[tuple[str, Bisection]]) -> str:
    removed = sum(each.cause is not None for _, each in found)
    named = sum(each.cause is not None and each.cause.kind == cause for cause, each in found)
    other = Counter(
        ("not reproduced" if not each.is_reproduced else "nothing removes it")
        if each.cause is None
        else each.cause.kind
        for cause, each in found
        if each.cause is None or each.cause.kind != cause
    )
    words = ", ".join(f"{kind} {n}" for kind, n in other.most_common())
    return f"| {name} | {len(found)} | {_share(removed, len(found))} | {_share(named, len(found))} | {words} |"


def _share(hits: int, n: int) -> str:
    if not n:
        return "-"
    low, high = wilson(hits, n)
    return f"{hits / n:.0%} ({low:.0%} to {high:.0%})"


if __name__ == "__main__":
    main()
