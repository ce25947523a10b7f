"""Measure what discovery costs, in plain forwards of the same model: python benchmarks/discovery_cost.py [pairs]."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import torch
from measuring import in_pairs, machine, show
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.batches import Batch, call
from rheoscope.probes.check_up import examine
from rheoscope.probes.discovery import discover
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def main(n_pairs: int = 8) -> None:
    """Measure discovery and a whole check-up on three models and print the table."""
    torch.set_num_threads(1)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for name, (model, batch) in models().items():
            cells = [name]
            forward = no_grad(model, batch)
            for what, action in (("discover", discover), ("examine", examine)):
                pairs = in_pairs(forward, lambda act=action: act(model, batch), n_pairs, progress, f"{name}, {what}")  # type: ignore[misc] # noqa: B023
                low, middle, high = pairs.quartiles
                seconds = sorted(pairs.other)[n_pairs // 2]
                cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f}), {seconds:.2f} s")
            cells.append(f"{sorted(pairs.plain)[n_pairs // 2]:.3f} s")
            rows.append(cells)
    title = f"Cost in plain forwards, median and quartiles of pairs by CPU time ({machine()}):"
    show(title, ("model", "discover", "examine (backward and checks included)", "plain forward"), rows)


def models() -> Mapping[str, tuple[nn.Module, Batch]]:
    """Return models of different makers with a batch of 4 x 128 tokens each."""
    torch.manual_seed(0)
    tokens = torch.randint(256, (4, 128))
    gpt2 = GPT2Config(vocab_size=2048, n_positions=128, n_embd=256, n_layer=6, n_head=4)
    llama = LlamaConfig(
        vocab_size=2048, hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=4
    )
    batch = {"input_ids": tokens}
    reference = ReferenceTransformer(Architecture(n_blocks=12, width=128, context=128))
    return {
        "GPT-2, 6 x 256": (GPT2LMHeadModel(gpt2), batch),
        "Llama, 6 x 256": (LlamaForCausalLM(llama), batch),
        "reference transformer, 12 x 128": (reference, (tokens, tokens)),
    }


def no_grad(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Return an action that runs one plain forward."""
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            call(model, batch)

    return forward


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
