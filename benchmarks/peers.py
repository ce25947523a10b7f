"""Time other tools on the model that probes are timed on: python benchmarks/peers.py [pairs].

Each trains its own copy of one model; a step under the tool and a plain one are taken in interleaved pairs, by CPU time. What is
not installed is named with the reason. They record different things, which stand beside the times: no two are rivals for all.
Install them without their dependencies on torch: pip install --no-deps nnsight torchlens transformer_lens wandb mup lightning.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from measuring import Action, in_pairs, machine, show
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional
from training import Inside, Loop, Setting

SETTING = Setting(6, 256, (4, 128))
WARM = 3  # steps before the first pair: optimizers make their states, tools look models up
Ends = Callable[[], None]


@dataclass(frozen=True)
class Peer:
    """One tool.

    Attributes:
        name: of the tool, as it is used here.
        module: what is imported for it.
        put_on: takes a plain loop, the module and a folder; returns one training step, what ends the tool, and in a phrase what
            it records in a step.
    """

    name: str
    module: str
    put_on: Callable[[Loop, Any, Path], tuple[Action, Ends, str]]


def main(n_pairs: int = 6) -> None:
    """Time all of them and print the table."""
    warnings.simplefilter("ignore")
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HF_HUB_OFFLINE": "1"}
    torch.set_num_threads(1)
    rows, missing = [], list(NOT_RUN)
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        for number, peer in enumerate(PEERS):
            place = Path(folder) / str(number)
            place.mkdir()
            try:
                row = _timed(peer, place, n_pairs, progress)
            except Exception as error:  # noqa: BLE001 - of other people's code
                missing.append(f"{peer.name} ({type(error).__name__}: {str(error).splitlines()[0][:100]})")
            else:
                rows.append(row)
    title = f"{SETTING}; {n_pairs} interleaved pairs with plain steps, by CPU time of this process ({machine()}):"
    show(title, ("", "added to a step, median (quartiles)", "records in a step"), rows)
    sys.stdout.write(f"\nNot run here: {'; '.join(missing)}.\n")


def _timed(peer: Peer, folder: Path, n_pairs: int, progress: Progress) -> tuple[str, str, str]:
    module = import_module(peer.module)
    plain, other = (Loop(SETTING, "plain", folder, Inside()) for _ in range(2))
    version = getattr(import_module(peer.module.partition(".")[0]), "__version__", "")
    step, end, records = peer.put_on(other, module, folder)
    try:
        for _ in range(WARM):
            step()
        pairs = in_pairs(partial(_train, plain), step, n_pairs, progress, peer.name)
    finally:
        end()
    low, middle, high = (100 * (ratio - 1) for ratio in pairs.quartiles)
    return f"{peer.name} {version}".strip(), f"{middle:.1f} % ({low:.1f} to {high:.1f})", records


def _step(loop: Loop, forward: Callable[[], Tensor] | None = None, before_update: Action | None = None) -> Tensor:
    """Train one step and return its loss."""
    logits = loop.model(input_ids=loop.tokens).logits if forward is None else forward()
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), loop.tokens[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    if before_update is not None:
        before_update()
    loop.optimizer.step()
    loop.optimizer.zero_grad()
    return loss.detach()


def _train(loop: Loop) -> None:
    _step(loop)


def _nothing() -> None:
    """End what needs no end."""


def _rheoscope(loop: Loop, recorder: Any, folder: Path) -> tuple[Action, Ends, str]:
    probe = recorder.attach(loop.model, loop.optimizer, every=1, folder=folder, strict=True)
    words = "the full set with exact attention, forward and backward, written to disk (every 10th step by default)"
    return lambda: probe.step(_step(loop)), probe.close, words


def _lightning(loop: Loop, grads: Any, folder: Path) -> tuple[Action, Ends, str]:  # noqa: ARG001
    found: dict[str, Any] = {}

    def step() -> None:
        _step(loop, before_update=lambda: found.update(grads.grad_norm(loop.model, 2)))
        found.update({name: float(norm) for name, norm in found.items()})

    return step, _nothing, "norm of every parameter's gradient and of all, brought to the host"


def _wandb(loop: Loop, wandb: Any, folder: Path) -> tuple[Action, Ends, str]:
    run = wandb.init(mode="offline", dir=str(folder), project="peers")
    run.watch(loop.model, log="all", log_freq=1)

    def end() -> None:
        run.unwatch()
        run.finish()

    def step() -> None:
        run.log({"loss": float(_step(loop))})

    return step, end, "histogram of every parameter and gradient, written to disk by a second process (not counted)"


def _mup(loop: Loop, coordinates: Any, folder: Path) -> tuple[Action, Ends, str]:  # noqa: ARG001
    found: list[Any] = []
    leaves = [(name, module) for name, module in loop.model.named_modules() if not list(module.children())]
    size = {"l1": lambda x: x.abs().mean()}
    for name, module in leaves:
        module.register_forward_hook(coordinates._record_coords(found, SETTING.width, name, 0, output_fdict=size))

    def step() -> None:
        _step(loop)
        found.clear()

    return (
        step,
        _nothing,
        f"mean magnitude of the output of {len(leaves)} modules, as its coordinate check does; forward",
    )


def _nnsight(loop: Loop, nnsight: Any, folder: Path) -> tuple[Action, Ends, str]:  # noqa: ARG001
    traced = nnsight.NNsight(loop.model)

    def forward() -> Tensor:
        with traced.trace(input_ids=loop.tokens):
            # nnsight gives every object a ``save`` within a trace.
            outputs: Any = [block.output for block in traced.transformer.h]
            states = outputs.save()
            logits = traced.lm_head.output.save()
        for state in states:
            state.detach().square().mean().sqrt().item()
        return logits  # type: ignore[no-any-return]

    def step() -> None:
        _step(loop, forward)

    return step, _nothing, "output of each block, kept, and its RMS; forward"


def _torchlens(loop: Loop, torchlens: Any, folder: Path) -> tuple[Action, Ends, str]:  # noqa: ARG001
    def trace() -> Any:
        return torchlens.trace(loop.model, input_kwargs={"input_ids": loop.tokens})

    def step() -> None:
        trace()
        _step(loop)

    return step, _nothing, f"{len(trace().layers)} operations of a forward of its own, kept"


def _transformer_lens(loop: Loop, module: Any, folder: Path) -> tuple[Action, Ends, str]:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    # It loads a tokenizer and a configuration by a name or a folder.
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=words, bos_token="a", eos_token="a", pad_token="a").save_pretrained(folder)
    inner: Any = loop.model
    inner.config.architectures = [type(inner).__name__]
    inner.config.save_pretrained(folder)
    bridge = module.TransformerBridge.boot_transformers(str(folder), hf_model=inner)
    # Its queries, keys and values have weights of their own.
    loop.optimizer = torch.optim.AdamW(bridge.parameters(), lr=3e-4, fused=True)
    n = len(bridge.run_with_cache(loop.tokens)[1])

    def step() -> None:
        _step(loop, lambda: bridge.run_with_cache(loop.tokens)[0])

    return step, _nothing, f"{n} activations, kept; forward"


PEERS = (
    Peer("Rheoscope, every step", "rheoscope.probes.recorder", _rheoscope),
    Peer("Lightning's grad_norm", "lightning.pytorch.utilities.grads", _lightning),
    Peer("wandb.watch, offline", "wandb", _wandb),
    Peer("mup's coordinate check", "mup.coord_check", _mup),
    Peer("nnsight", "nnsight", _nnsight),
    Peer("TransformerLens' bridge", "transformer_lens", _transformer_lens),
    Peer("torchlens", "torchlens.user_funcs", _torchlens),
)
NOT_RUN = ("Composer's monitors (they run inside its own Trainer, whose import asks for torchvision)",)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
