"""Train tiny runs whose quantities grow, hide how they end, and ask when: python benchmarks/forecasts.py [page] [steps]."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rheoscope.diagnostics.extrapolation import reach
from rheoscope.diagnostics.forecast import forecasts
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.corpus import batches
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording
from torch import nn

STEPS, EVERY = 600, 5
SEED = 1  # the thresholds of forecasts were chosen on the same runs with seed 0
CUTS = (0.3, 0.4, 0.5, 0.6)  # of the run: what a forecast may see
AHEAD = (1.5, 2.0, 3.0)  # times the steps seen: where the value is that it must foretell
BASE = Architecture(4, 64, 4, vocabulary=256, context=32, norm_kind="rmsnorm", biases=False)


@dataclass(frozen=True)
class Run:
    """How one run is trained: choices of the architecture, learning rates, and whether something is meant to grow on."""

    choices: dict[str, Any]
    lr: float
    is_growing: bool
    no_final_norm: bool = False
    faster: tuple[str, ...] = ()  # parts of the names of parameters that learn ten times as fast
    gain_decay: float = 0.0
    decay: float = 0.1


QK = ("query.weight", "key.weight")
RUNS = {
    "no QK-norm, lr .003": Run({}, 3e-3, True),
    "no QK-norm, lr .01": Run({}, 1e-2, True),
    "no QK-norm, queries and keys learn 10 times as fast": Run({}, 1e-3, True, faster=QK),
    "the same, no weight decay, 8 blocks": Run({"n_blocks": 8}, 1e-3, True, faster=QK, decay=0.0),
    "no final norm, lr .003": Run({}, 3e-3, True, no_final_norm=True),
    "weight decay 3 on gains, lr .003": Run({"qk_norm": True}, 3e-3, True, gain_decay=3.0),
    "weight decay 1 on gains, lr .003": Run({"norm_placement": "double"}, 3e-3, True, gain_decay=1.0),
    "no QK-norm, lr .1: jumps, then wanders": Run({}, 0.1, False),
    "QK-norm, lr .03": Run({"qk_norm": True}, 3e-2, False),
    "pre, QK-norm, lr .001": Run({"qk_norm": True}, 1e-3, False),
    "pre, lr .0003": Run({}, 3e-4, False),
    "double, lr .001": Run({"norm_placement": "double"}, 1e-3, False),
    "post, biases, lr .0003": Run({"norm_placement": "post", "biases": True}, 3e-4, False),
}


@dataclass(frozen=True)
class Trial:
    """One question: the run's label, whether it is meant to grow, the error of the time to the limit, and what was said."""

    is_growing: bool
    quantity: str
    actual: float | None  # steps from the cut to the limit; None where the run never gets there
    foretold: float | None
    hidden: float  # steps that were hidden

    @property
    def error(self) -> float | None:
        """Relative error of the time to the limit; None without one or the other."""
        return None if self.actual is None or self.foretold is None else abs(self.foretold / self.actual - 1)

    @property
    def is_false(self) -> bool:
        """Whether the limit was foretold within what was hidden, and did not come."""
        return self.actual is None and self.foretold is not None and self.foretold <= self.hidden


def trained(run: Run, n_steps: int, folder: Path) -> Recording:
    """Return the recording of one run on the standard library's source: AdamW, ten steps of warm-up, clipping at 1."""
    model = ReferenceTransformer(replace(BASE, **run.choices), seed=SEED)
    if run.no_final_norm:
        model.final_norm = nn.Identity()
    named = dict(model.named_parameters())
    fast = [name for name in named if name.endswith(run.faster)]
    gains = [name for name in named if named[name].dim() == 1 and name.endswith("weight")]
    rest = [name for name in named if name not in {*fast, *gains}]
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[name] for name in names], "weight_decay": decay, "times": times}
            for names, decay, times in ((rest, run.decay, 1), (fast, run.decay, 10), (gains, run.gain_decay, 1))
            if names
        ],
        betas=(0.9, 0.95),
    )
    stream = batches(8, 32, seed=SEED)
    with attach(model, optimizer, every=EVERY, folder=folder) as probe:
        for step in range(n_steps):
            for group in optimizer.param_groups:
                group["lr"] = group["times"] * run.lr * min(1.0, (step + 1) / 10)
            batch = next(stream)
            loss = model(batch[:, :-1], batch[:, 1:]).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return probe.recording


def series(tables: Tables) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield quantity, steps and values of what is forecast, per block."""
    for _, rows in tables.attention_by_block().groupby(["stack", "block"]):
        yield "attention logit", rows["step"].to_numpy(float), rows["logit_max"].to_numpy(float)
    for _, rows in tables.state_rms().groupby(["stack", "depth"]):
        yield "state absmax", rows["step"].to_numpy(float), rows["absmax"].to_numpy(float)
    rows = tables.log_z()
    yield "log Z", rows["step"].to_numpy(float), rows["log_z"].abs().to_numpy(float)
    for _, rows in tables.parameters[tables.parameters["role"] == "gain"].groupby("name"):
        value = rows["weight_rms"].to_numpy(float)
        yield "gain drift", rows["step"].to_numpy(float), np.maximum(value / value[0], value[0] / value)


def smoothed(values: np.ndarray, half: int = 2) -> np.ndarray:
    """Return running medians of five points."""
    padded = np.pad(values, half, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1), axis=1)


def trials(tables: Tables, *, is_growing: bool) -> Iterator[Trial]:
    """Yield the questions that one run can answer: values that it takes later, and twice the largest, which it never takes."""
    for quantity, steps, values in series(tables):
        level = smoothed(values)
        if len(steps) < 20 or not np.isfinite(values).all() or not (values > 0).all():
            continue
        for cut in CUTS:
            seen = int(cut * len(steps))
            last = steps[seen - 1]
            hidden = float(steps[-1] - last)
            limits = [level[min(len(steps) - 1, int(seen * ahead))] for ahead in AHEAD] + [2 * values.max()]
            for limit in limits:
                if limit <= 1.2 * level[:seen].max():
                    continue  # not a limit ahead
                crossed = np.nonzero(level >= limit)[0]
                actual = float(steps[crossed[0]] - last) if len(crossed) else None
                when = reach(steps[:seen], values[:seen], float(limit))
                yield Trial(is_growing, quantity, actual, None if when is None else when.step - last, hidden)


def main(page: str = "", n_steps: str = str(STEPS)) -> None:
    """Train the runs, ask, and print or write the page."""
    torch.set_num_threads(1)
    asked: list[Trial] = []
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for index, (label, run) in enumerate(RUNS.items()):
            recording = trained(run, int(n_steps), Path(folder) / str(index))
            tables = Tables(recording)
            found = list(trials(tables, is_growing=run.is_growing))
            asked += found
            logits = tables.attention_by_block().groupby("step")["logit_max"].max()
            states = tables.state_rms().groupby("step")["absmax"].max()
            said = ", ".join(f.code.removeprefix("forecast-") for f in forecasts(tables)) or "nothing"
            lines.append(
                f"| {label} | {tables.losses['loss'].tail(20).mean():.2f} | {logits.iloc[0]:.2g} to {logits.max():.3g} "
                f"| {states.iloc[0]:.2g} to {states.max():.3g} | {len(found)} | {said} |"
            )
            sys.stderr.write(lines[-1] + "\n")
    text = report(lines, asked, int(n_steps))
    if page:
        Path(page).write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)


def report(lines: list[str], asked: list[Trial], n_steps: int) -> str:
    """Return the page."""
    text = f"""# Forecasts, tried on runs whose end was hidden

Written by `python benchmarks/forecasts.py docs/forecasts.md`. Each run trains a reference transformer (64 wide, 4 blocks unless
said, byte tokens of the standard library's source, AdamW, {n_steps} steps, every {EVERY}th sampled, seed {SEED}; the
thresholds were chosen with seed 0). A forecast sees the first {", ".join(f"{c:.0%}" for c in CUTS)} of the run and is asked
when a quantity reaches a value that the run takes at {", ".join(f"{a:g}" for a in AHEAD)} times the steps seen, and when it
reaches twice the largest value of the whole run, which it never takes. The actual time is that of running medians over five
samples. False: foretold within what was hidden, and did not come.

The runs were chosen so that something grows steadily in most of them: a first set (higher rates, 300 steps) jumped and saturated,
and the median error there was 30 to 34 %. Most answers below are of gain drift under strong weight decay, which is exponential by
construction. For attention logits and log Z these runs support no claim: their forecasts are remarks, never warnings.

| run | last loss | largest attention logit | largest state | questions | forecasts at the end, real limits |
|---|---|---|---|---|---|
"""
    text += "\n".join(lines) + "\n\n"
    text += "| quantity | questions with an end | answered | median error of the time | within 20 % "
    text += "| questions without | false |\n"
    text += "|---|---|---|---|---|---|---|\n"
    for quantity in (*dict.fromkeys(trial.quantity for trial in asked), "all"):
        of = [trial for trial in asked if quantity in (trial.quantity, "all")]
        ends = [trial for trial in of if trial.actual is not None]
        errors = [trial.error for trial in ends if trial.error is not None]
        never = [trial for trial in of if trial.actual is None]
        false = sum(trial.is_false for trial in never)
        median = f"{np.median(errors):.0%}" if errors else "-"
        within = f"{np.mean([e <= 0.2 for e in errors]):.0%}" if errors else "-"
        share = f"{false} ({false / len(never):.1%})" if never else "-"
        text += f"| {quantity} | {len(ends)} | {len(errors)} | {median} | {within} | {len(never)} | {share} |\n"
    calm = [trial for trial in asked if not trial.is_growing and trial.actual is None]
    false = sum(trial.is_false for trial in calm)
    text += (
        f"\nIn the runs where nothing was meant to grow {false} of {len(calm)} questions without an end drew a false "
    )
    text += "forecast.\n"
    return text


if __name__ == "__main__":
    main(*sys.argv[1:3])
