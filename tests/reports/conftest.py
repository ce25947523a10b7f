"""Recordings that the report's tests show: a short run, a check-up, a comparison, and hand-made ill ones."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from browsers import CHROMIUM, QUIET
from playwright.sync_api import Browser, sync_playwright
from rheoscope.diagnostics.comparison import Comparison
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.experiments.norm_placement_and_biases import norm_placement_and_biases
from rheoscope.lab.training import train
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor

TINY = Architecture(n_blocks=4, width=16, n_heads=2, context=12, vocabulary=256)
HOSTILE = (
    "</script><img src=x onerror=\"window.PWN=1\"><a href='https://evil.example'>\u202e\x1b]0;x\x07\x00" + "n" * 10_000
)


def next_token_loss(model: torch.nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = model(batch[:, :-1], batch[:, 1:]).loss
    return loss


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """Five steps of a post-norm model with biases, three of them sampled."""
    generator = torch.Generator().manual_seed(0)
    batches = iter([torch.randint(256, (2, 13), generator=generator) for _ in range(5)])
    model = ReferenceTransformer(replace(TINY, norm_placement="post"), seed=0)
    folder = tmp_path_factory.mktemp("run") / "recording"
    return train(model, batches, next_token_loss, n_steps=5, lr=1e-3, folder=folder, every=2, label="a run")


@pytest.fixture(scope="session")
def check_up() -> Recording:
    """One check-up of a pre-norm model."""
    tokens = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    return examine(ReferenceTransformer(TINY, seed=0), tokens, label="a check-up")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """The demo's experiment, tiny."""
    folder = tmp_path_factory.mktemp("comparison")
    return norm_placement_and_biases(folder, base=TINY, n_steps=2, depths=(2, 4))


@pytest.fixture
def empty() -> Recording:
    """A recording of a run whose model was never called."""
    return Recording.from_tables({}, Anatomy(), {})


@pytest.fixture
def hostile(check_up: Recording) -> Recording:
    """A check-up in which every name is an attack."""
    anatomy = check_up.anatomy
    stack = anatomy.stacks[0]
    branches = tuple(replace(branch, kind=HOSTILE, module_path=HOSTILE) for branch in stack.branches)
    tables = {}
    for name in ("steps", "activations", "gradient_paths", "parameters", "identities"):
        frame = check_up.table(name)
        for column in ("branch", "module_path", "name", "note"):
            if column in frame:
                frame[column] = HOSTILE
        tables[name] = frame
    manifest = {
        "label": HOSTILE,
        "created": HOSTILE,
        "model": {"class_name": HOSTILE, "dtype": HOSTILE, "device": HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "not_measured": [HOSTILE],
    }
    ill = replace(anatomy, stacks=(replace(stack, branches=branches),), problems=(HOSTILE,))
    return Recording.from_tables(manifest, ill, tables)


@pytest.fixture
def not_finite(check_up: Recording) -> Recording:
    """A check-up whose every statistic is NaN or infinite."""
    tables = {name: check_up.table(name) for name in ("steps", "activations", "gradient_paths", "parameters")}
    for name, frame in tables.items():
        for column in frame.select_dtypes("float"):
            frame[column] = float("inf") if name == "activations" else float("nan")
        if "nonfinite" in frame:
            frame["nonfinite"] = 5.0
    return Recording.from_tables({"label": "not finite"}, check_up.anatomy, tables)


@pytest.fixture
def page_path(tmp_path: Path) -> Path:
    """Where a test's page goes."""
    return tmp_path / "page.html"
