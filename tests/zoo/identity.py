"""``make identity``: train every chosen type with and without probes, compare bit by bit, and write docs/bit_identity.md.

Each run starts from the same weights and random state, with dropout on, and makes the same AdamW steps. A run without
probes is made twice: a model that does not even repeat itself cannot tell anything about probes, and the table says so.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rheoscope.probes.batches import tensors
from rheoscope.probes.check_up import default_loss
from rheoscope.probes.errors import BatchError
from rheoscope.probes.recorder import attach
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from .build import NotBuiltError, Specimen, specimen
from .examine import Row
from .pool import rows

TYPES = (
    "gpt2 gpt_neo gpt_neox gptj opt bloom falcon llama mistral mixtral qwen2 qwen3 qwen3_moe gemma gemma2 gemma3_text olmo "
    "olmo2 olmoe phi phi3 stablelm starcoder2 cohere cohere2 granite granitemoe glm glm4 deepseek_v3 nemotron persimmon mpt "
    "codegen xglm biogpt dbrx bert roberta albert distilbert electra deberta deberta-v2 ernie xlnet xlm mpnet modernbert "
    "esm nystromformer t5 mt5 bart mbart pegasus marian blenderbot led vit deit beit dinov2 swin clip siglip wav2vec2 "
    "whisper hubert mamba jamba bamba rwkv"
)
ATTENTIONS = ("eager", "sdpa")  # flex_attention has no backward on a CPU
COMPILED = "gpt2 llama bert t5 olmo2 gemma2 vit gpt_neox opt mixtral".split()
N_STEPS = 20
N_COMPILED_STEPS = 6
EVERY = 3
DROPOUT = 0.1

Trained = tuple[list[Tensor], dict[str, Tensor]]


def main() -> None:
    """Train the types and write the table."""
    parser = argparse.ArgumentParser(prog="identity", description=__doc__)
    parser.add_argument("types", nargs="*", help=f"model types of transformers; {len(TYPES.split())} without any")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=240.0, help="time limit of one row")
    parser.add_argument("--output", type=Path, default=Path("docs/bit_identity.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    chosen = given.types or TYPES.split()
    names = [f"{name} {way}" for name in chosen for way in ATTENTIONS]
    names += [f"{name} compiled" for name in chosen if name in COMPILED]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    found: dict[str, Row] = {}
    with Progress(*columns) as progress:
        task = progress.add_task("identity", total=len(names))
        for row in rows(names, workers=given.workers, seconds=given.seconds, work=compared):
            found[row["type"]] = row
            progress.update(task, advance=1, description=f"{row['type'][:28]:28}")
    given.output.write_text(written([found[name] for name in names]), encoding="utf-8")
    sys.stdout.write(f"{given.output}\n")


def compared(name: str) -> Row:
    """Return the row of ``name``: a model type and an attention implementation, or the word ``compiled``."""
    kind, way = name.split()
    row: Row = {"type": name, "outcome": "not built", "cause": ""}
    try:
        made = specimen(kind)
    except NotBuiltError as error:
        return row | {"cause": str(error)[:200]}
    row["class"] = type(made.model).__name__
    if way == "compiled":
        return row | _compiled(made)
    try:
        made.model.set_attn_implementation(way)
        with torch.no_grad():
            made.model(**made.batch)
    except Exception as error:
        return row | {"outcome": "not offered", "cause": f"{type(error).__name__}: {error!s:.120}"}
    if getattr(made.model.config, "_attn_implementation", way) != way:
        return row | {"outcome": "not offered", "cause": "the type has one attention"}
    return row | _eager(made)


def _eager(made: Specimen) -> Row:
    _drop_out(made.model)
    try:
        plain, again = trained(made), trained(made)
    except Exception as error:
        return {"outcome": "does not train", "cause": f"{type(error).__name__}: {error!s:.160}"}
    with tempfile.TemporaryDirectory() as folder:
        seen: list[Any] = []
        probed = trained(made, partial(_attached, folder=Path(folder), seen=seen))
        row = _recorded(seen[0])
    return row | _judged(plain, again, probed)


def _compiled(made: Specimen) -> Row:
    """Compare under torch.compile: never sampled but for the first step, and sampled every other step."""
    _drop_out(made.model)
    torch.set_num_threads(1)
    run = partial(trained, made, n_steps=N_COMPILED_STEPS, is_compiled=True)
    try:
        plain, again = run(), run()
    except Exception as error:
        return {"outcome": "does not train", "cause": f"{type(error).__name__}: {error!s:.160}"}
    row: Row = {}
    with tempfile.TemporaryDirectory() as folder:
        seen: list[Any] = []
        idle = run(partial(_attached, folder=Path(folder) / "idle", seen=seen, schedule=lambda _: False))
        sampled = run(partial(_attached, folder=Path(folder) / "sampled", seen=seen, every=2))
        row |= _recorded(seen[1])
    row |= _judged(plain, again, idle)
    return row | {"difference": _difference(plain, sampled), "own": _difference(plain, again)}


def _attached(model: nn.Module, optimizer: Any, folder: Path, seen: list[Any], **given: Any) -> Any:
    given = given or {"every": EVERY}
    probe = attach(model, optimizer, folder=folder, strict=True, triggered=0, **given)
    seen.append(probe)
    return probe


def trained(
    made: Specimen,
    attached: Callable[[nn.Module, Any], Any] | None = None,
    *,
    n_steps: int = N_STEPS,
    is_compiled: bool = False,
) -> Trained:
    """Return the losses and the weights after AdamW steps on one batch, with dropout on."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = copy.deepcopy(made.model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch._dynamo.reset()
    called = torch.compile(model) if is_compiled else model
    probe = attached(called, optimizer) if attached is not None else None
    losses = []
    for _ in range(n_steps):
        loss = scalar(called(**made.batch), made.batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().clone())
        if probe is not None:
            probe.step(loss)
    if probe is not None:
        probe.close()
    return losses, {name: value.detach().clone() for name, value in model.state_dict().items()}


def scalar(output: Any, batch: Any) -> Tensor:
    """Return the loss that the output carries or that follows from it, or the mean square of what it holds."""
    with contextlib.suppress(BatchError):  # many types have no loss of their own
        loss = default_loss(output, batch)
        if loss.requires_grad:
            return loss
    found = [t for _, t in tensors(output) if t.is_floating_point() and t.requires_grad]
    return torch.stack([tensor.float().square().mean() for tensor in found]).sum()


def _drop_out(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = module.p or DROPOUT


def _recorded(probe: Any) -> Row:
    if probe.anatomy is None:
        return {"n_rows": 0, "n_blocks": 0}
    table = probe.recording.table("activations", columns=["step"])
    return {"n_rows": len(table), "n_blocks": probe.anatomy.n_blocks, "n_sampled": int(table["step"].nunique())}


def _judged(plain: Trained, again: Trained, probed: Trained) -> Row:
    if not _equal(plain, again):
        return {
            "outcome": "does not repeat itself",
            "cause": f"by up to {_difference(plain, again):.1e} without probes",
        }
    if not _equal(plain, probed):
        return {"outcome": "changed", "cause": f"weights differ by up to {_difference(plain, probed):.1e}"}
    is_finite = all(bool(torch.isfinite(loss)) for loss in plain[0])
    return {"outcome": "identical", "cause": "" if is_finite else "the loss itself is not finite"}


def _equal(one: Trained, other: Trained) -> bool:
    same = all(_bits(a, b) for a, b in zip(one[0], other[0], strict=True))
    return same and all(_bits(value, other[1][name]) for name, value in one[1].items())


def _bits(one: Tensor, other: Tensor) -> bool:
    # NaN equals itself here: what counts is that probes change nothing.
    return one.numpy().tobytes() == other.numpy().tobytes()


def _difference(one: Trained, other: Trained) -> float:
    pairs = [(value, other[1][name]) for name, value in one[1].items() if value.is_floating_point()]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs if a.numel())


def written(found: list[Row]) -> str:
    """Return docs/bit_identity.md."""
    eager = [row for row in found if not row["type"].endswith(" compiled")]
    compiled = [row for row in found if row["type"].endswith(" compiled")]
    judged = [row for row in eager if row["outcome"] in ("identical", "changed")]
    same = [row for row in judged if row["outcome"] == "identical"]
    kinds = {row["type"].split()[0] for row in same}
    others = Counter(row["outcome"] for row in eager if row not in judged)
    lines = [
        "# Training is not changed",
        "",
        f"Written by `make identity` with transformers {transformers.__version__} and torch {torch.__version__}, one "
        f"thread. Each row: {N_STEPS} AdamW steps with dropout on, from the same weights and random state, without probes "
        f"(twice) and with them (every {EVERY}rd step sampled, `strict=True`); losses and weights are compared bit by bit.",
        "",
        f"- {len(same)} of {len(judged)} identical, over {len(kinds)} model types and {len(ATTENTIONS)} attention "
        "implementations (flex_attention has no backward on a CPU: not measured).",
        "- Not judged: " + (", ".join(f"{n} {outcome}" for outcome, n in sorted(others.items())) or "none") + ".",
        "",
        "## Eager",
        "",
        "| type | class | attention | outcome | blocks | sampled steps | rows recorded | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in eager:
        kind, way = row["type"].split()
        lines.append(_line(kind, row.get("class"), way, row["outcome"], *_counts(row), row.get("cause")))
    lines += [
        "",
        "## Compiled",
        "",
        f"`torch.compile(model)` with inductor, {N_COMPILED_STEPS} steps. Outcome: with probes attached and no step sampled "
        "(one graph more, which is not entered), against no probes. Difference: the largest of any weight after the run "
        "with every other step sampled from inside the graph, where the compiler fuses otherwise.",
        "",
        "| type | class | not sampled | difference when sampled | blocks | sampled steps | rows recorded | remark |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in compiled:
        difference = f"{row['difference']:.1e}" if "difference" in row else ""
        kind = row["type"].split()[0]
        lines.append(_line(kind, row.get("class"), row["outcome"], difference, *_counts(row), row.get("cause")))
    return "\n".join(lines) + "\n"


def _counts(row: Row) -> tuple[Any, ...]:
    return row.get("n_blocks"), row.get("n_sampled"), row.get("n_rows")


def _line(*cells: Any) -> str:
    return (
        "| "
        + " | ".join("" if cell is None else str(cell).replace("|", "/").replace("\n", " ") for cell in cells)
        + " |"
    )


if __name__ == "__main__":
    main()
