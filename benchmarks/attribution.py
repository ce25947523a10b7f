"""Measure whom attribution names, how it adds up and what it costs: python benchmarks/attribution.py PAGE [--weights FOLDER]."""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from attribution_weights import HOW, real_weights
from measuring import machine
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.corpus import batches
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.attribution import attribute_update, gradient_shares, output_ledger, usefulness
from rheoscope.probes.discovery import discover
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

N_BLOCKS, WIDTH, LENGTH, VOCABULARY = 12, 32, 32, 257
MASK = 256  # a token that no byte is
WARM_UP = 60  # steps of training before the trials
SPIKE = 0.05  # by which a harmful update must raise the loss to be one
SIZES = (3.0, 10.0, 30.0, 100.0, 300.0)  # times the block's own step; the smallest that makes a spike is taken
KINDS = ("overshoot", "reverse", "noise")
Batch = dict[str, Tensor]

HEAD = """# Attribution: whom it names, how it adds up, what it costs

Written by `make attribution` ({machine}; {minutes:.0f} minutes).
"""


def shapes() -> dict[str, Callable[[], nn.Module]]:
    """Return what makes each model of transformers, tiny, with twelve blocks."""
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    gpt2 = GPT2Config(
        n_layer=N_BLOCKS,
        n_embd=WIDTH,
        n_head=4,
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    llama = LlamaConfig(
        num_hidden_layers=N_BLOCKS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
    )
    bert = BertConfig(
        num_hidden_layers=N_BLOCKS,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
    )
    return {
        "GPT-2": lambda: GPT2LMHeadModel(gpt2),
        "Llama": lambda: LlamaForCausalLM(llama),
        "BERT": lambda: BertForMaskedLM(bert),
    }


def batch_of(tokens: Tensor, shape: str, generator: torch.Generator) -> Batch:
    """Return a batch of the task that the shape is made for: the next byte, or a masked one."""
    ids = tokens[:, :LENGTH]
    if shape != "BERT":
        return {"input_ids": ids, "labels": ids}
    hidden = torch.rand(ids.shape, generator=generator) < 0.3
    return {"input_ids": ids.masked_fill(hidden, MASK), "labels": ids.masked_fill(~hidden, -100)}


@dataclass(frozen=True)
class Trial:
    """One harmful update: the block that it was planted in, and what was said of it.

    Attributes:
        kind: how the block moved.
        size: times its own step.
        rise: of the loss, on a batch that the update was not made of.
        place: of the block in the ranking by blame, from 1; 0 where none was ranked.
        by_slope: its place by gradient times update at the old weights alone.
        by_size: its place by the size of the update beside the weights.
        error: completeness error.
        n_points: passes of the attribution.
        seconds: what it took.
    """

    kind: str
    size: float
    rise: float
    place: int
    by_slope: int
    by_size: int
    error: float
    n_passes: int
    seconds: float


def trials(shape: str, make: Callable[[], nn.Module], n: int, progress: Progress) -> Iterator[Trial]:
    """Yield trials on one model: trained a little, then from its state again and again one update with one block gone wrong."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stream = batches(8, LENGTH, seed=0)
    for _ in progress.track(range(WARM_UP), description=f"{shape}: warm-up"):
        model(**batch_of(next(stream), shape, generator)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    state, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    anatomy = discover(model, batch_of(next(stream), shape, generator))
    owned = [{name for branch in block for name in branch.parameters} for block in anatomy.blocks]
    for number in progress.track(range(n), description=f"{shape}: trials"):
        model.load_state_dict(state)
        optimizer.load_state_dict(copy.deepcopy(memory))
        step, seen = (batch_of(next(stream), shape, generator) for _ in range(2))
        model(**step).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        block = int(torch.randint(N_BLOCKS, (), generator=generator))
        yield _trial(model, state, owned, block, KINDS[number % len(KINDS)], seen, anatomy, generator)


def _trial(
    model: nn.Module,
    before: dict[str, Tensor],
    owned: list[set[str]],
    block: int,
    kind: str,
    seen: Batch,
    anatomy: Any,
    generator: torch.Generator,
) -> Trial:
    named = dict(model.named_parameters())
    after = {name: p.detach().clone() for name, p in named.items()}
    start = _loss(model, before, seen)
    noise = {name: torch.randn(named[name].shape, generator=generator) for name in owned[block]}
    size, rise = 0.0, 0.0
    for size in SIZES:
        moved = dict(after)
        for name in owned[block]:
            way = after[name] - before[name]
            if kind == "overshoot":
                moved[name] = before[name] + size * way
            elif kind == "reverse":
                moved[name] = before[name] - size * way
            else:
                moved[name] = after[name] + noise[name] * size * way.norm() / noise[name].norm().clamp_min(1e-12)
        rise = _loss(model, moved, seen) - start
        if rise > SPIKE:
            break
    began = time.perf_counter()
    found = attribute_update(model, seen, before, moved, anatomy=anatomy)
    took = time.perf_counter() - began
    _loss(model, before, seen, backward=True)
    slopes, sizes = [], []
    for names in owned:
        ways = {name: moved[name] - before[name] for name in names}
        slopes.append(sum(float((named[n].grad * way).sum()) for n, way in ways.items() if named[n].grad is not None))
        energy = sum(float(way.square().sum()) for way in ways.values())
        sizes.append(energy / sum(float(before[name].square().sum()) for name in names))
    model.zero_grad()
    place = [at[1] for at in found.ranking].index(block) + 1 if found.ranking else 0
    return Trial(
        kind,
        size,
        rise,
        place,
        _place(slopes, block),
        _place(sizes, block),
        found.error or 0.0,
        found.cost.n_passes,
        took,
    )


def _loss(model: nn.Module, weights: dict[str, Tensor], batch: Batch, *, backward: bool = False) -> float:
    model.load_state_dict(weights, strict=False)
    was_training = model.training
    model.eval()
    with torch.set_grad_enabled(backward):
        loss = model(**batch).loss
        if backward:
            loss.backward()
    model.train(was_training)
    return float(loss.detach())


def _place(values: list[float], index: int) -> int:
    return sorted(range(len(values)), key=lambda k: -values[k]).index(index) + 1


def blame(n: int, progress: Progress) -> str:
    """Return the section on spike blame."""
    rows, every = [], []
    for number, (shape, make) in enumerate(shapes().items()):
        share = n // 3 + (1 if number < n % 3 else 0)
        found = list(trials(shape, make, share, progress))
        every += found
        rows.append(_blame_row(shape, found))
    rows += [_blame_row(f"all, {kind}", [trial for trial in every if trial.kind == kind]) for kind in KINDS]
    rows.append(_blame_row("**all**", every))
    columns = ["", "trials", "named first", "by slope alone", "by size alone", "rise of the loss, median"]
    columns += ["completeness error, median / worst", "within 1 %", "passes", "s, median"]
    return f"""## Blame for an update

Each model ({N_BLOCKS} blocks, {WIDTH} wide) is trained for {WARM_UP} steps on bytes. From there, in every trial, all blocks take
AdamW's own step (learning rate .003) and one, drawn at random, goes wrong: it *overshoots* its own step by a factor, takes it in
*reverse*, or takes *noise* of a size of its own step times a factor; the factor is the smallest of
{", ".join(f"{size:g}" for size in SIZES)} that raises the loss of a batch that the step was not made of by more than {SPIKE:g}.
`attribute_update` is asked about that batch at its defaults. Beside it two cheaper rankings: gradient times update at the old
weights (*slope*), and the size of the update beside that of the weights (*size*).

| {" | ".join(columns)} |
|{"---|" * len(columns)}
{chr(10).join(rows)}

A block that moved further than all others is found by its size alone; blame says besides how much of the rise is its own.
"""


def _blame_row(name: str, found: list[Trial]) -> str:
    errors, passes = [trial.error for trial in found], [trial.n_passes for trial in found]
    return (
        f"| {name} | {len(found)} | **{sum(t.place == 1 for t in found)}** | {sum(t.by_slope == 1 for t in found)} "
        f"| {sum(t.by_size == 1 for t in found)} | {statistics.median(t.rise for t in found):.3g} "
        f"| {statistics.median(errors):.1e} / {max(errors):.1e} | {sum(e <= 0.01 for e in errors)} of {len(found)} "
        f"| {min(passes)} to {max(passes)} | {statistics.median(t.seconds for t in found):.2g} |"
    )


DESIGNS: dict[str, dict[str, Any]] = {
    "pre": {},
    "double": {"norm_placement": "double"},
    "reordered": {"norm_placement": "reordered", "qk_norm": True},
    "parallel": {"is_parallel": True},
    "post": {"norm_placement": "post"},
}
BASE = Architecture(N_BLOCKS, 64, 4, vocabulary=256, context=LENGTH, norm_kind="rmsnorm", biases=False)


def trained(choices: dict[str, Any], n_steps: int) -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a reference transformer trained a little on bytes, a batch, and another."""
    model = ReferenceTransformer(replace(BASE, **choices), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    stream = batches(8, LENGTH, seed=0)
    for _ in range(n_steps):
        tokens = next(stream)
        model(tokens[:, :-1], tokens[:, 1:]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    one, other = next(stream), next(stream)
    return model.eval(), (one[:, :-1], one[:, 1:]), (other[:, :-1], other[:, 1:])


def ledger_and_knock_outs(progress: Progress, n_steps: int) -> str:
    """Return the sections on the ledger and on knock-outs."""
    ledger, outs = [], []
    for name, choices in progress.track(DESIGNS.items(), description="ledger and knock-outs"):
        model, batch, other = trained(choices, n_steps)
        for words, baseline in (("mean state", None), ("another batch", other)):
            found = output_ledger(model, batch, baseline)
            rows = [dict(row) for row in found.rows]
            cuts = [
                abs(row["value"] - found.total) / abs(found.total or 1.0)
                for row in rows
                if row["method"] == "cut_total"
            ]
            lines = sum(row["method"] == "ledger" for row in rows)
            error = "does not apply" if found.error is None else f"{found.error:.1e}"
            ledger.append(
                f"| {name} | {words} | {found.total:+.3f} | {lines or '–'} | {error} | {len(cuts)} | {max(cuts):.1e} "
                f"| {found.cost.n_passes} |"
            )
        outs.append(_knock_out_row(name, model, batch))
    return f"""## The ledger of the output

Reference transformers, {N_BLOCKS} blocks, 64 wide, trained for {n_steps} steps on bytes, 8 sequences of {LENGTH} bytes; defaults.
*Error*: how far the lines are from adding up to the change of the loss, over the change. *Cut totals*: captum's
LayerIntegratedGradients at states further down, and how far the worst of them is from that change.

| norm placement | baseline | change of the loss | lines | error | cut totals | worst of them | passes |
|---|---|---|---|---|---|---|---|
{chr(10).join(ledger)}

{_by_hand()}
## Knock-out

*Largest difference*: between a block's knock-out and a hook, written for this model, that zeroes what its two branches add, over
all blocks. *Identity last*: each of the {N_BLOCKS} blocks in turn has its last projections set to zero; how often it is ranked
last.

| norm placement | loss | largest difference | identity last |
|---|---|---|---|
{chr(10).join(outs)}
"""


def _by_hand() -> str:
    """Return how far the ledger of a linear model is from the decomposition by hand, in a sentence."""

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.head = nn.Embedding(61, 16), nn.Linear(16, 61)
            self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tokens(ids)
            for branch in self.branches:
                x = x + branch(x)
            return self.head(x)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, ids, other = Linear(), torch.randint(61, (3, 8)), torch.randint(61, (3, 8))
    found = output_ledger(model, (ids,), (other,), loss_fn=lambda output, _: output[:, -1, 7].mean())
    with torch.no_grad():
        x, y = model.tokens(ids), model.tokens(other)
        expected = [((x - y)[:, -1] @ model.head.weight[7]).mean()]
        for branch in model.branches:
            one, two = branch(x), branch(y)
            expected.append(((one - two)[:, -1] @ model.head.weight[7]).mean())
            x, y = x + one, y + two
    values = [row["value"] for row in found.rows if row["method"] == "ledger"]
    worst = max(abs(value - float(hand)) for value, hand in zip(values, expected, strict=True))
    return (
        f"A stream of six matrices, of which one logit is decomposed, is booked as by hand: the largest difference of a line is "
        f"{worst:.1e}, of a change of {found.total:+.3f}.\n"
    )


def _knock_out_row(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> str:
    anatomy = discover(model, batch)
    found = usefulness(model, batch, anatomy=anatomy).by_block("block_knock_out")
    with torch.no_grad():
        loss = float(model(*batch).loss)
    differences, n_last = [], 0
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type]
        parts = []
        for part in ("attention", "mlp"):
            after = getattr(block, f"{part}_out", None)
            parts.append(getattr(block, part) if after is None or isinstance(after, nn.Identity) else after)
        handles = [part.register_forward_hook(lambda _, __, output: torch.zeros_like(output)) for part in parts]
        with torch.no_grad():
            differences.append(abs(float(model(*batch).loss) - loss - found[0, index]))
        for handle in handles:
            handle.remove()
        held = copy.deepcopy(block.state_dict())
        with torch.no_grad():
            for projection in (block.attention.output, block.mlp.down):
                projection.weight.zero_()
        n_last += usefulness(model, (batch[0][:2], batch[1][:2]), anatomy=anatomy).ranking[-1] == (0, index)
        block.load_state_dict(held)
    return f"| {name} | {loss:.3f} | {max(differences):.1e} | {n_last} of {len(differences)} |"


def costs(progress: Progress) -> str:
    """Return the section on what the defaults cost at 12 blocks x 256."""
    model = ReferenceTransformer(replace(BASE, width=256, context=64), seed=0)
    tokens = next(batches(4, 64, seed=0))
    batch = (tokens[:, :-1], tokens[:, 1:])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    anatomy = discover(model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    asked: dict[str, Callable[[], Any]] = {
        "attribute_update": lambda: attribute_update(model, batch, before, anatomy=anatomy),
        "usefulness": lambda: usefulness(model, batch, anatomy=anatomy),
        "output_ledger": lambda: output_ledger(model, batch, anatomy=anatomy),
        "gradient_shares": lambda: gradient_shares(model, batch, anatomy=anatomy),
    }
    rows = []
    for name, ask in progress.track(asked.items(), description="costs"):
        began, cpu = time.perf_counter(), time.process_time()
        found = ask()
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
        rows.append(f"| {name} | {found.cost.n_passes} | {found.cost.n_bytes / 1e6:.3g} | {wall:.1f} | {cpu:.1f} |")
    return f"""## What the defaults cost

{N_BLOCKS} blocks x 256, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million weights, 4 sequences of 63 bytes, one
thread of a machine that others use as well; discovery apart.

| | passes | MB beside the model | s of wall time | s of CPU time |
|---|---|---|---|---|
{chr(10).join(rows)}
"""


def main() -> None:
    """Measure everything and write the page; each part's numbers are kept as they come, for a run that is broken off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--steps", type=int, default=100, help="of training of the reference transformers")
    parser.add_argument("--weights", type=Path, default=None, help=HOW)
    parser.add_argument(
        "--kept", type=Path, default=None, help="a file in which finished parts are kept and gone on with"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(given.kept.read_text()) if given.kept is not None and given.kept.exists() else {}
    began = time.perf_counter()
    with Progress(console=Console(stderr=True)) as progress:
        parts: dict[str, Callable[[], str]] = {
            "costs": lambda: costs(progress),
            "blame": lambda: blame(given.trials, progress),
            "ledger": lambda: ledger_and_knock_outs(progress, given.steps),
            "real": lambda: real_weights(given.weights, progress),
        }
        for name, measure in parts.items():
            if name not in kept:
                kept[name] = measure()
                if given.kept is not None:
                    given.kept.write_text(json.dumps(kept))
    head = HEAD.format(machine=machine(), minutes=(time.perf_counter() - began) / 60)
    order = ("blame", "ledger", "real", "costs")
    given.page.write_text("\n".join([head, *(kept[name] for name in order)]), encoding="utf-8")
    sys.stdout.write(f"{given.page}\n")


if __name__ == "__main__":
    main()
