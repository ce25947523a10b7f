"""Measure what attached probes add to a training step: python benchmarks/overhead.py [pairs].

Hugging Face's GPT-2, 6 blocks of 256, batches of 4 x 128 tokens, AdamW. Two equal models train side by side, one of them
under probes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from measuring import Action, in_pairs, machine, show
from rheoscope.probes.recorder import attach
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

NEVER = 10**9  # a stride that samples step 0 alone: after it the probe is idle


def main(n_pairs: int = 24) -> None:
    """Measure every stride and print the table."""
    torch.set_num_threads(1)
    rows = []
    with Progress(console=Console(stderr=True)) as progress, tempfile.TemporaryDirectory() as folder:
        for name, every, n_steps in (("every=1", 1, 1), ("every=10", 10, 10), ("idle", NEVER, 1)):
            plain, _ = trainer(None, n_steps, Path())
            probed, close = trainer(every, n_steps, Path(folder) / name)
            pairs = in_pairs(plain, probed, max(6, n_pairs // n_steps), progress, name)
            close()
            low, middle, high = ((value - 1) * 100 for value in pairs.quartiles)
            step = sorted(pairs.plain)[len(pairs.plain) // 2] / n_steps
            spread = f"{low:+.1f} to {high:+.1f} %"
            rows.append((name, f"{middle:+.1f} %", spread, f"{step:.3f} s", f"{len(pairs.plain)} x {n_steps}"))
    title = f"Overhead of probes on a training step, GPT-2, 6 blocks x 256 wide, 4 x 128 tokens ({machine()}):"
    show(title, ("probes", "CPU time added, median", "quartiles", "plain step", "pairs x steps"), rows)


def trainer(every: int | None, n_steps: int, folder: Path) -> tuple[Action, Action]:
    """Return an action that trains ``n_steps`` steps, under probes where ``every`` is given, and one that closes it."""
    torch.manual_seed(0)
    options = {"vocab_size": 2048, "n_positions": 128, "n_embd": 256, "n_layer": 6, "n_head": 4, "bos_token_id": 0}
    model: nn.Module = GPT2LMHeadModel(GPT2Config(**options, eos_token_id=0))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    tokens = torch.randint(2048, (4, 128))
    probe = None if every is None else attach(model, optimizer, every=every, folder=folder, strict=True)

    def train() -> None:
        for _ in range(n_steps):
            logits: Tensor = model(input_ids=tokens).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if probe is not None:
                probe.step(loss)

    return train, probe.close if probe is not None else lambda: None


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
