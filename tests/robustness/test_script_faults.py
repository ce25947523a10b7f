"""Whatever breaks in what watches a program from outside: the program ends with the same weights, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, cross_entropy, ids
from rheoscope.probes.integrations.script import ScriptProbes
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers

from robustness.injection import WORDS, called_in, functions, raising
from robustness.loops import same

START = [NanoGPT(n_blocks=1, dropout=0.1).train(), NanoGPT(n_blocks=1).train()]

# Everything of ours runs inside the first; the second is what torch calls, and calls nothing else. The others run before the
# program begins or after it has ended.
OUTERMOST = {"script.ScriptProbes._guard", "search.Search._called"}
OUTSIDE = {"ScriptProbes.start", "ScriptProbes.finish", "ScriptProbes.__init__", "Replacements", "Search.__init__"}
OUTSIDE |= {
    "ScriptProbes._probed",
    "Following.__init__",
    "BackwardLosses.__init__",
    "Following.close",
    "._around_",
    "Search.close",
    "Taken",
}


@pytest.fixture(autouse=True)
def _tidy() -> Iterator[None]:
    """Take away what a search that was broken on purpose could not."""
    yield
    torch_modules._global_forward_pre_hooks.clear()
    torch_optimizers._global_optimizer_pre_hooks.clear()
    torch_optimizers._global_optimizer_post_hooks.clear()


def program() -> list[nn.Module]:
    """Train two models with all that is watched: a scaler, micro-batches, two optimizers of one model, evaluation."""
    models = copy.deepcopy(START)
    torch.manual_seed(1)
    first = [
        torch.optim.AdamW(list(models[0].parameters())[:3], lr=0.01),
        torch.optim.SGD(list(models[0].parameters())[3:]),
    ]
    second = torch.optim.SGD(models[1].parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for seed in range(3):
        for part in range(2):
            (cross_entropy(models[0](ids(seed=seed + part)), ids(seed=seed)) / 2).backward()
        for optimizer in first:
            optimizer.step()
            optimizer.zero_grad()
        scaler.scale(cross_entropy(models[1](ids(seed=seed)), ids(seed=seed))).backward()
        if seed == 1:
            next(models[1].parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]  # the backward left one
        scaler.step(second)
        scaler.update()
        second.zero_grad()
    return models


def watched(folder: Path, run: Callable[[], None]) -> list[str]:
    """Run a program under probes; return what was said."""
    said: list[str] = []
    probes = ScriptProbes(folder, label="", say=said.append, options={"every": 1})
    probes.start()
    try:
        run()
    finally:
        probes.finish()
    return said


def test_any_function_that_watches_a_program_may_raise_and_it_ends_with_the_same_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = program()
    ran: set[object] = set()
    watched(tmp_path / "whole", lambda: ran.update(called_in(lambda: program() and None)))
    all_functions = {name: each for name, each in functions().items() if name.startswith("integrations.")}
    called = {
        name.removeprefix("integrations."): function
        for name, function in all_functions.items()
        if function.__code__ in ran and not any(words in name for words in OUTSIDE)
    }
    tried = sorted(set(called) - OUTERMOST)
    wrong, silent = [], []

    for number, name in enumerate(tried):
        found: list[nn.Module] = []
        said: list[str] = []
        try:
            with raising(called[name]):
                said = watched(tmp_path / str(number), lambda into=found: into.extend(program()))  # type: ignore[misc]
        except RuntimeError as error:
            wrong.append(f"{name} raised {error}")
            continue
        if not all(same(a, b) for a, b in zip(found, plain, strict=True)):
            wrong.append(f"{name} changed the weights")
        if not any(WORDS in each for each in (*said, *caplog.messages)):
            silent.append(name)
        caplog.clear()

    assert len(tried) > 25
    assert wrong == []
    assert silent == []
