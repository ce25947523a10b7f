"""Training loops of Hugging Face's GPT-2 to measure on: plain, under a probe, under a rival."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rheoscope.probes import function_taps, hooked, probe, tap
from rheoscope.probes.discovery import discover
from rheoscope.probes.recorder import attach
from rivals import put_on_naive_hooks, put_on_readers
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

NEVER = 10**9  # a stride that samples step 0 alone: after it the probe is idle


@dataclass(frozen=True)
class Setting:
    """A model's size and its batch."""

    n_blocks: int
    width: int
    batch: tuple[int, int]

    def __str__(self) -> str:
        """Name it as the table does."""
        n, length = self.batch
        return f"GPT-2, {self.n_blocks} blocks x {self.width} wide, {n} x {length} tokens"


class Inside:
    """CPU time of this thread inside callbacks; a callback within a callback counts once."""

    def __init__(self) -> None:
        """Start at 0."""
        self.seconds = 0.0
        self._depth = 0

    def timed(self, callback: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``callback``, timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return callback(*args, **kwargs)
            self._depth = 1
            start = time.thread_time()
            try:
                return callback(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - start
                self._depth = 0

        return call

    def watch_probes(self) -> None:
        """Time every door through which torch or the loop calls a probe."""
        for owner, name in (
            (hooked.Hook, "__call__"),
            (tap.Tap, "_see_node"),
            (tap.Tap, "_see_gradient"),
            (function_taps.FunctionTaps, "_measure"),
            (function_taps.FunctionTaps, "_quietly"),
            (probe.Probe, "step"),
        ):
            setattr(owner, name, self.timed(getattr(owner, name)))


class Loop:
    """A model in training; ``run`` returns the CPU seconds of so many steps and how many were inside callbacks."""

    def __init__(self, setting: Setting, kind: str, folder: Path, inside: Inside) -> None:
        """Build the model; ``kind`` is plain, every=<n>, all=<n>, idle, control or naive."""
        torch.manual_seed(0)
        sizes = {"n_positions": setting.batch[1], "n_embd": setting.width, "n_layer": setting.n_blocks, "n_head": 4}
        self.model: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, vocab_size=2048, bos_token_id=0, eos_token_id=0))
        self.model.train()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, fused=True)
        self.tokens = torch.randint(2048, setting.batch)
        self.inside = inside
        self.probe: probe.Probe | None = None
        if kind == "idle" or "=" in kind:
            every = NEVER if kind == "idle" else int(kind.partition("=")[2])
            options: dict[str, Any] = {"every": every, "attention": not kind.startswith("every="), "strict": True}
            self.probe = attach(self.model, self.optimizer, folder=folder, **options)
        elif kind != "plain":
            put_on = {"control": put_on_readers, "naive": put_on_naive_hooks}[kind]
            put_on(self.model, self.optimizer, discover(self.model, {"input_ids": self.tokens}), inside.timed)

    def run(self, n_steps: int) -> tuple[float, float]:
        """Train."""
        inside, start = self.inside.seconds, time.process_time()
        for _ in range(n_steps):
            logits: Tensor = self.model(input_ids=self.tokens).logits
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.probe is not None:
                self.probe.step(loss)
        return time.process_time() - start, self.inside.seconds - inside

    def close(self) -> None:
        """Close the probe, if there is one."""
        if self.probe is not None:
            self.probe.close()
