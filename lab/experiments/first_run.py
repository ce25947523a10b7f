"""Train a small GPT-2 on real text under the probes: the first recording a newcomer sees."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.corpus import batches
from rheoscope.lab.threads import one_thread
from rheoscope.lab.training import train
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.recording import Recording
from torch import Tensor, nn
from torch.nn import functional

N_STEPS = 100
WIDTH, N_BLOCKS, N_HEADS, CONTEXT, BATCH, LR = 192, 6, 6, 128, 8, 1e-3


@one_thread()
def first_run(folder: Path, *, n_steps: int = N_STEPS, on_step: Callable[[int], None] | None = None) -> Recording:
    """Return the recording of ``n_steps`` steps of byte-level language modelling, written to ``folder``.

    The model is Hugging Face's GPT-2 with random weights, or the reference transformer where ``transformers`` is not
    installed; the label says which.
    """
    torch.manual_seed(0)
    has_library = find_spec("transformers") is not None
    model = _gpt2() if has_library else ReferenceTransformer(_reference(), seed=0)
    label = "GPT-2 (Hugging Face, random weights)" if has_library else "reference transformer (transformers is missing)"
    return train(
        model,
        batches(BATCH, CONTEXT, seed=0),
        _gpt2_loss if has_library else reference_loss,
        n_steps=n_steps,
        lr=LR,
        folder=folder,
        every=5,
        label=f"{label}, {n_steps} steps on the standard library's source, byte level",
        on_step=on_step,
    )


def reference_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the next-token loss of a reference transformer on a batch of shape (batch, length + 1)."""
    loss: Tensor = model(batch[:, :-1], batch[:, 1:]).loss
    return loss


def _reference() -> Architecture:
    return Architecture(N_BLOCKS, WIDTH, N_HEADS, context=CONTEXT, dropout=0.1)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    options: dict[str, Any] = {"n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": N_BLOCKS, "n_head": N_HEADS}
    options |= {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**options))
    return model


def _gpt2_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the next-token loss of a batch of shape (batch, length + 1)."""
    logits: Tensor = model(input_ids=batch[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
