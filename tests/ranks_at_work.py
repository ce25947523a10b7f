"""What one rank does in the tests of many: train small models under a probe, as torchrun would start it.

Run as a script with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in the environment. What it trains on, and how, is here
too, so that the test can do the same in one process.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import rheoscope.probes.distributed
import rheoscope.probes.probe
import rheoscope.probes.stage_writer
import torch
import torch.distributed as dist
from oracles import VOCABULARY, NanoGPT, cross_entropy, ids, llama
from rheoscope.probes.discovery import dissect
from rheoscope.probes.errors import DiscoveryError, RecordingError
from rheoscope.probes.recorder import attach
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

STEPS, EACH = 3, 2  # optimizer steps, sequences a rank and micro-batch
PATIENCE = timedelta(seconds=15)


class WithUnused(NanoGPT):
    """A decoder with a layer that no forward uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)


class Routed(NanoGPT):
    """A decoder whose second MLP is a mixture of four experts, of which each token takes two."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].mlp = Mixture()


class Mixture(nn.Module):
    """A router and experts that are each given their tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(2, -1)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, nth = (chosen == index).nonzero(as_tuple=True)
            out = out.index_add(0, token, expert(flat[token]) * weights[token, nth].unsqueeze(-1))
        return out.reshape(x.shape)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


@dataclass(frozen=True)
class Case:
    """One way to train: ``spread`` makes of a model what is called and attached to."""

    make: Callable[[], nn.Module]
    spread: Callable[[nn.Module], nn.Module]
    optimizer: Callable[[Any], torch.optim.Optimizer] = adamw
    n_micro: tuple[int, ...] = (1,) * STEPS
    clip: float | None = None
    n_copies: int = 1  # ranks that train on the same data
    part: Callable[[nn.Module], nn.Module] = lambda model: model  # what the probe is attached to
    stumbles: int = -1  # the rank on which discovery fails half-way


def mesh_of(*shape: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape, mesh_dim_names=("outer", "inner")[: len(shape)])


def shard(model: nn.Module, **policy: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks if hasattr(model, "blocks") else model.model.layers:  # type: ignore[union-attr]
        fully_shard(block, **policy)
    return fully_shard(model, **policy)


def shard_in_bfloat16(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return shard(model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32))


def parallelise(model: nn.Module, mesh: Any = None) -> nn.Module:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh = mesh_of(dist.get_world_size()) if mesh is None else mesh
    attention = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"} | {
        "self_attn.o_proj": RowwiseParallel()
    }
    mlp = {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel(), "mlp.down_proj": RowwiseParallel()}
    for block in model.model.layers:  # type: ignore[union-attr]
        parallelize_module(block, mesh, attention | mlp)
    return model


def parallelise_sequences(model: nn.Module) -> nn.Module:
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        PrepareModuleOutput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh, whole, cut = mesh_of(dist.get_world_size()), Replicate(), Shard(1)
    cutting = PrepareModuleOutput(output_layouts=whole, desired_output_layouts=cut)
    joining = PrepareModuleInput(input_layouts=(cut,), desired_input_layouts=(whole,), use_local_output=True)
    end = ColwiseParallel(input_layouts=cut, output_layouts=whole)
    parallelize_module(model, mesh, {"drop": cutting, "norm": SequenceParallel(), "head": end})
    attention = {"norm_1": SequenceParallel(), "attention": joining, "attention.drop": cutting}
    mlp = {"mlp.0": ColwiseParallel(input_layouts=cut), "mlp.2": RowwiseParallel(output_layouts=cut)}
    for block in model.blocks:  # type: ignore[union-attr]
        parallelize_module(block, mesh, attention | {"norm_2": SequenceParallel()} | mlp)
    return model


def shard_and_parallelise(model: nn.Module) -> nn.Module:
    mesh = mesh_of(2, 2)
    return shard(parallelise(model, mesh["inner"]), mesh=mesh["outer"])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def one_by_one(parameters: Any) -> torch.optim.Optimizer:
    # torch refuses to take plain tensors and DTensors together.
    return torch.optim.AdamW(parameters, lr=1e-2, foreach=False)


CASES = {
    "replicated": Case(lambda: Routed().double(), DistributedDataParallel, clip=0.5),
    "accumulated": Case(
        lambda: WithUnused().double(),
        lambda model: DistributedDataParallel(model, find_unused_parameters=True),
        sgd,
        n_micro=(1, 2, 3),
        part=lambda model: model.module,
    ),
    "tensor parallel": Case(lambda: llama().double(), parallelise, one_by_one, n_copies=2),
    "sequence parallel": Case(lambda: NanoGPT().double(), parallelise_sequences, one_by_one, n_copies=2),
    "sharded": Case(lambda: NanoGPT().double(), shard, clip=0.5),
    "sharded accumulated": Case(lambda: NanoGPT("post").double(), shard, sgd, n_micro=(2, 2, 2), stumbles=1),
    "sharded bfloat16": Case(NanoGPT, shard_in_bfloat16),
    "sharded and replicated": Case(
        lambda: NanoGPT().double(), lambda model: shard(model, mesh=mesh_of(2, 2)), clip=0.5
    ),
    "sharded and tensor parallel": Case(lambda: llama().double(), shard_and_parallelise, one_by_one, n_copies=2),
}
BY_RANKS = {
    2: ["replicated", "accumulated", "tensor parallel", "sequence parallel"],
    3: ["sharded", "sharded accumulated", "sharded bfloat16"],
    4: ["sharded and replicated", "sharded and tensor parallel"],
}


def batch(step: int, micro: int, rank: int) -> Tensor:
    """Return the token ids that a rank trains on."""
    return ids(EACH, seed=100 * step + 10 * micro + rank)


def whole_batch(case: Case, step: int, micro: int, n_ranks: int) -> Tensor:
    """Return what all ranks train on."""
    return torch.cat([batch(step, micro, rank) for rank in range(n_ranks // case.n_copies)])


def loss_on(model: nn.Module, tokens: Tensor) -> Tensor:
    if any(name.startswith("model.") for name, _ in model.named_parameters()):
        return model(input_ids=tokens, labels=tokens).loss
    logits = model(tokens)
    return cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, tokens)


def train(
    case: Case, model: nn.Module, batches: list[list[Tensor]], probe: Any, optimizer: torch.optim.Optimizer
) -> None:
    """Train, and let ``probe.step`` follow where there is a probe."""
    for micro_batches in batches:
        total = 0.0
        for index, tokens in enumerate(micro_batches):
            with held_back(model, index < len(micro_batches) - 1):
                loss = loss_on(model, tokens) / len(micro_batches)
                loss.backward()
            total += float(loss.detach())
        if case.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), case.clip)
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, DistributedDataParallel) and dist.get_rank() == 0:
            evaluate(model.module)
        if probe is not None:
            probe.step(total, n_tokens=sum(tokens.numel() for tokens in micro_batches))


def evaluate(model: nn.Module) -> None:
    """Look at the model on this rank alone."""
    model.eval()
    with torch.no_grad():
        loss_on(model, batch(999, 0, 0))
    model.train()


@contextlib.contextmanager
def held_back(model: nn.Module, is_on: bool) -> Iterator[None]:
    """Keep gradients from being joined, in the way of the model's wrapper."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(not is_on)
        yield
    elif is_on and isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        yield


def trained(case: Case, folder: Path | None) -> list[Tensor]:
    """Train as this rank, with a probe where there is a folder; return the weights that the rank holds."""
    torch.manual_seed(0)
    model = case.spread(case.make())
    optimizer = case.optimizer(model.parameters())
    rank = dist.get_rank() // case.n_copies
    batches = [[batch(step, micro, rank) for micro in range(n)] for step, n in enumerate(case.n_micro)]
    if folder is None:
        train(case, model, batches, None, optimizer)
    else:
        is_stumbling, captured = case.stumbles == dist.get_rank(), dissect.captured
        dissect.captured = fails if is_stumbling else captured
        with attach(case.part(model), optimizer, every=1, folder=folder, strict=not is_stumbling) as probe:
            train(case, model, batches, probe, optimizer)
        dissect.captured = captured
    return [getattr(p, "_local_tensor", p).detach().clone() for p in model.parameters()]


def compared(folder: Path) -> None:
    """Train every case with and without a probe."""
    found = {}
    for name in BY_RANKS[dist.get_world_size()]:
        with_probe = trained(CASES[name], folder / name)
        without = trained(CASES[name], None)
        found[name] = all(torch.equal(a, b) for a, b in zip(with_probe, without, strict=True))
    (folder / f"bits {dist.get_rank()}.json").write_text(json.dumps(found))


def cut_off(folder: Path, how: str) -> None:
    """Train; after five steps the last rank raises, dies, or closes its probe and leaves.

    Where it raises gradients are joined, so that the others' training ends too; else each rank trains by itself.
    """
    torch.manual_seed(0)
    model = DistributedDataParallel(NanoGPT())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    is_last = dist.get_rank() == dist.get_world_size() - 1
    apart = contextlib.nullcontext() if how == "raises" else model.no_sync()
    with attach(model, optimizer, every=1, folder=folder / how) as probe, apart:
        for step in range(8):
            loss = loss_on(model, batch(step, 0, dist.get_rank()))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
            if step == 4 and is_last:
                if how == "raises":
                    raise ValueError("as a rank may")
                if how == "dies":
                    os._exit(1)
                return
    (folder / f"{how} went on").write_text(str(step))


def small(folder: Path | None = None, **how: Any) -> tuple[Any, torch.optim.Optimizer, Any]:
    """Return a small model in DDP with its optimizer and, given a folder, a probe."""
    torch.manual_seed(0)
    model = DistributedDataParallel(NanoGPT())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, None if folder is None else attach(model, optimizer, folder=folder, **how)


def walk(model: Any, optimizer: Any, probe: Any, steps: range, *, micro: Callable[[int], int] = lambda _: 1) -> None:
    """Train some steps."""
    for step in steps:
        for index in range(micro(step)):
            loss_on(model, batch(step, index, dist.get_rank())).backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step(1.0)


def behaves(folder: Path) -> None:
    """Use probes in ways that must hang nobody, and write down what came of each."""
    rank, found = dist.get_rank(), {}

    # The first rank alone measures a model that is not spread: no other is asked.
    if rank == 0:
        own = NanoGPT()
        optimizer = sgd(own.parameters())
        with attach(own, optimizer, every=1, folder=folder / "own") as probe:
            walk(own, optimizer, probe, range(2))
        found["own"] = len(probe.recording.table("activations"))
    dist.barrier()

    # Recordings are read where they are written; a folder that holds one is refused on every rank.
    model, optimizer, probe = small(folder / "first", every=1)
    walk(model, optimizer, probe, range(2))
    try:
        found["recording"] = len(probe.recording.table("steps"))
    except RecordingError as error:
        found["recording"] = str(error)
    probe.close()
    try:
        small(folder / "first")
    except RecordingError as error:
        found["exists"] = type(error).__name__
    # Continued: both go on at the same step.
    model, optimizer, probe = small(folder / "first", every=1, resume=True)
    walk(model, optimizer, probe, range(2, 4))
    probe.close()

    # Something happens on one rank: both sample the steps after it.
    model, optimizer, probe = small(folder / "triggered", every=100, triggered=2)
    for step in range(11):
        loss = loss_on(model, batch(step, 0, rank))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        probe.step(math.nan if rank == 1 and step == 2 else loss)
    probe.close()

    # Ranks that sample different steps, or have different numbers of micro-batches.
    model, optimizer, probe = small(folder / "at odds", schedule=lambda step: rank == 0 or step % 2 == 0)
    walk(model, optimizer, probe, range(4))
    probe.close()
    model, optimizer, probe = small(folder / "uneven", every=1)
    with model.no_sync():
        walk(model, optimizer, probe, range(2), micro=lambda step: 1 + (rank == step))
    probe.close()

    # Discovery fails on one rank, in the middle of its own forwards.
    right = rheoscope.probes.probe.discover
    if rank == 1:
        rheoscope.probes.probe.discover = fails
    model, optimizer, probe = small(folder / "one finds", every=1)
    walk(model, optimizer, probe, range(2))
    probe.close()
    rheoscope.probes.probe.discover = right

    # There is no stream to be found: losses are recorded alone.
    model, optimizer, probe = small(folder / "nobody finds", every=1)
    rheoscope.probes.probe.discover = fails
    walk(model, optimizer, probe, range(4))
    probe.close()
    rheoscope.probes.probe.discover = right

    # Every rank is given the same data.
    model, optimizer, probe = small(folder / "same", every=1)
    loss_on(model, batch(0, 0, 0)).backward()
    optimizer.step()
    probe.step()
    probe.close()

    # One rank closes its probe early.
    cut_off(folder, "closes")

    # A probe on the first rank alone.
    rheoscope.probes.distributed.ATTACH_SECONDS = 1.0
    model, optimizer, probe = small()
    if rank == 0:
        probe = attach(model, optimizer, every=1, folder=folder / "first alone")
    loss_on(model, batch(0, 0, rank)).backward()
    optimizer.step()
    if probe is not None:
        probe.step()
        probe.close()
    (folder / f"found {rank}.json").write_text(json.dumps(found))


class Part(nn.Module):
    """Stage ``index`` of ``n`` of a decoder: its share of the blocks, under their own names or counted from 0."""

    def __init__(self, model: NanoGPT, index: int, n: int, *, counts_anew: bool = False) -> None:
        super().__init__()
        each = len(model.blocks) // n
        if index == 0:
            self.tokens, self.positions = model.tokens, model.positions
        first = index * each
        self.blocks = nn.ModuleDict({str(k - first * counts_anew): model.blocks[k] for k in range(first, first + each)})
        if index == n - 1:
            self.norm, self.head = model.norm, model.head

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "tokens"):
            x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks.values():
            x = block(x)
        return self.head(self.norm(x)) if hasattr(self, "head") else x


N_MICRO = 4


def decoder() -> NanoGPT:
    torch.manual_seed(0)
    return NanoGPT(n_blocks=6).double()


def piped(folder: Path, name: str) -> list[Tensor]:
    """Train one stage a rank by torch's own schedules, with a probe but for the schedule's ``bare`` twin."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    index, n = dist.get_rank(), dist.get_world_size()
    model = Part(decoder(), index, n)
    stage = PipelineStage(model, index, n, torch.device("cpu"))
    kind = Schedule1F1B if "1f1b" in name else ScheduleGPipe
    schedule = kind(stage, N_MICRO, loss_fn=cross_entropy)
    optimizer = adamw(model.parameters())
    is_bare = name.startswith("bare")
    probe = None if is_bare else attach(model, optimizer, every=1, folder=folder / name, strict=True)
    for step in range(STEPS):
        tokens, losses = ids(2 * N_MICRO, seed=step), []
        schedule.step(*([tokens] if index == 0 else []), target=tokens if index == n - 1 else None, losses=losses)
        optimizer.step()
        optimizer.zero_grad()
        if probe is not None:
            probe.step(sum(losses) / N_MICRO if losses else None, n_tokens=tokens.numel())
    if probe is not None:
        probe.close()
    return [p.detach().clone() for p in model.parameters()]


def in_stages(folder: Path) -> None:
    """Train pipelines by torch's schedules, with and without a probe, and one that is written out by hand."""
    rank = dist.get_rank()
    found = {}
    for name in ("gpipe", "1f1b"):
        with_probe, without = piped(folder, name), piped(folder, f"bare {name}")
        found[name] = all(torch.equal(a, b) for a, b in zip(with_probe, without, strict=True))
    (folder / f"bits {rank}.json").write_text(json.dumps(found))
    by_hand(folder / "by hand", is_cut=False)
    by_hand(folder / "cut", is_cut=True)


def in_replicated_stages(folder: Path) -> None:
    """Train two stages of two replicas each."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B

    mesh = mesh_of(2, 2)
    index, replica = mesh["inner"].get_local_rank(), mesh["outer"].get_local_rank()
    model = DistributedDataParallel(Part(decoder(), index, 2), process_group=mesh["outer"].get_group())
    stage = PipelineStage(model, index, 2, torch.device("cpu"), group=mesh["inner"].get_group())
    schedule = Schedule1F1B(stage, N_MICRO, loss_fn=cross_entropy)
    optimizer = adamw(model.parameters())
    with attach(model, optimizer, every=1, folder=folder / "replicated", strict=True) as probe:
        for step in range(STEPS):
            # Each replica takes every other pair of sequences: the same micro-batches, half as large.
            tokens, losses = ids(4 * N_MICRO, seed=step).unflatten(0, (N_MICRO, 2, 2))[:, replica].flatten(0, 1), []
            schedule.step(*([] if index else [tokens]), target=tokens if index else None, losses=losses)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(sum(losses) / N_MICRO if losses else None, n_tokens=tokens.numel())


def by_hand(folder: Path, *, is_cut: bool) -> None:
    """Send states and gradients as a loop of one's own would; where ``is_cut`` the last stage never closes its probe."""
    index, n = dist.get_rank(), dist.get_world_size()
    model = Part(decoder(), index, n, counts_anew=True)
    optimizer = adamw(model.parameters())
    probe = attach(model, optimizer, every=1, folder=folder, stage=(index, n))
    for step in range(STEPS):
        tokens = ids(EACH, seed=step)
        x = tokens
        if index > 0:
            x = torch.empty(EACH, tokens.shape[1], 16, dtype=torch.float64)
            dist.recv(x, index - 1)
            x.requires_grad_()
        out = model(x)
        if index < n - 1:
            dist.send(out.detach(), index + 1)
            gradient = torch.empty_like(out)
            dist.recv(gradient, index + 1)
            out.backward(gradient)
        else:
            loss = cross_entropy(out, tokens)
            loss.backward()
        if index > 0:
            dist.send(x.grad, index - 1)
        optimizer.step()
        optimizer.zero_grad()
        probe.step(loss if index == n - 1 else None)
    if is_cut:
        rheoscope.probes.stage_writer.PATIENCE = 0.5
        # The last stage closes when the first waits no longer.
        for closing in range(1, n - 1), range(1), range(n - 1, n):
            if index in closing:
                probe.close()
            dist.barrier()
    probe.close()


def fails(*_: Any) -> Any:
    raise DiscoveryError("as discovery may")


def main() -> None:
    torch.set_num_threads(1)
    task, folder = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        if task == "compare":
            compared(folder)
        elif task == "stages":
            in_stages(folder)
        elif task == "replicated stages":
            in_replicated_stages(folder)
        elif task == "behave":
            behaves(folder)
        else:
            cut_off(folder, task)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    assert VOCABULARY
    main()
