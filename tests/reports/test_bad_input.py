"""Whatever a recording holds, a page comes out that says what is there and what is not."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from page_reading import carried
from rheoscope.diagnostics.comparison import compare
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from rheoscope.reports.page import MOST_FINDINGS
from rheoscope.reports.report import FORMS, render
from rheoscope.reports.words import MOST_EVENTS

LIMIT = 4_000_000  # bytes of a page
STRANGE = [
    "\u202egnp.exe",
    "\u2066\u2069",
    "עברית",
    "العربية",
    "a\x00b\x1b[31m\x7f\x9b",
    "‮" * 50,
    "n" * 10_000,
    "\u200b",
    " ",
    "",
]


def tall(n_blocks: int, value: float = 1.0) -> Recording:
    """Return one step of a pre-norm stack of ``n_blocks`` MLPs in which every state and gradient has the same size."""
    branches = tuple(Branch(0, i, i + 1, "mlp", "pre", "layernorm", ledger_error=1e-8) for i in range(n_blocks))
    depths = np.tile(np.arange(n_blocks + 1), 2)
    activations = pd.DataFrame(
        {
            "step": 0,
            "micro_step": 0,
            "stack": 0,
            "depth": depths,
            "block": depths - 1,
            "branch": np.where(depths > 0, "mlp", "embedding"),
            "site": "state",
            "call": 0,
            "direction": np.repeat(["forward", "backward"], n_blocks + 1),
            "n": 64,
            "rms": value,
            "absmax": value,
            "nonfinite": 0 if np.isfinite(value) else 64,
        }
    )
    steps = pd.DataFrame({"step": [0], "loss": [value], "is_sampled": [True]})
    manifest = {"label": f"{n_blocks} blocks", "status": "closed", "model": {"dtype": "float32"}}
    return Recording.from_tables(
        manifest, Anatomy((Stack(0, branches, width=8),)), {"steps": steps, "activations": activations}
    )


def said(page: str) -> str:
    """Return the text of a page, without its scripts."""
    return re.sub(r"<(script|style)[^>]*>.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_at_all_says_so_in_every_form(form: str, empty: Recording) -> None:
    text = render(empty, form=form)

    assert "residual stream" in text
    assert len(text) < LIMIT


def test_one_block_says_that_trends_need_more() -> None:
    text = said(render(tall(1)))

    assert "Trends over depth were not judged in stack 0: they need 4 blocks, it has 1 block." in text
    assert "1 block, 1 branch" in text
    assert "PASS" in text


@pytest.mark.parametrize("form", FORMS)
def test_a_thousand_blocks_fit(form: str) -> None:
    text = render(tall(1_000), form=form)

    assert "1000 blocks" in text or "1,000 blocks" in text
    assert len(text.encode()) < LIMIT


def test_a_fault_of_a_thousand_blocks_is_told_by_the_first_of_them() -> None:
    recording = tall(1_000, value=float("nan"))
    rows = recording.table("activations")
    broken = Recording.from_tables(
        recording.manifest, recording.anatomy, {"activations": rows, "steps": recording.table("steps")}
    )

    text = render(broken)

    assert len(text.encode()) < LIMIT
    assert "FAIL" in said(text)
    assert text.count('class="finding ') <= MOST_FINDINGS + 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_fail_and_are_no_gap(value: float) -> None:
    text = render(tall(6, value))

    assert 'class="badge FAIL"' in text
    assert ">nan<" not in text.lower()
    assert "NaN" not in carried(text)


@pytest.mark.parametrize("form", FORMS)
def test_strange_names_are_printable_text_wherever_they_stand(form: str) -> None:
    given = tall(len(STRANGE))
    stack = given.anatomy.stacks[0]
    branches = tuple(
        replace(branch, kind=name or "x", module_path=name)
        for branch, name in zip(stack.branches, STRANGE, strict=True)
    )
    names = ["", *STRANGE] * 2
    rows = given.table("activations").assign(branch=names, module_path=names)
    events = pd.DataFrame({"step": 0, "kind": "fault", "sentence": STRANGE})
    stacks = (replace(stack, branches=branches),)
    anatomy = replace(given.anatomy, stacks=stacks, notes=tuple(STRANGE), problems=tuple(STRANGE))
    manifest = {"label": "".join(STRANGE), "model": {"class_name": STRANGE[0], "dtype": "float32"}}

    text = render(Recording.from_tables(manifest, anatomy, {"activations": rows, "events": events}), form=form)

    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", text)
    assert "n" * 700 not in text
    assert "עברית" in text
    assert len(text.encode()) < LIMIT


def test_many_events_are_counted_and_the_first_are_told() -> None:
    events = pd.DataFrame({"step": range(MOST_EVENTS + 7), "kind": "fault", "sentence": "It stumbled."})

    text = said(render(Recording.from_tables({}, Anatomy(), {"events": events})))

    assert text.count("It stumbled.") == MOST_EVENTS
    assert "7 more events stand in the recording." in text


def test_recordings_of_different_anatomies_stand_side_by_side(empty: Recording) -> None:
    ids = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(0))
    base = Architecture(n_blocks=4, width=16, n_heads=2, context=12)
    deep = examine(ReferenceTransformer(base), ids)
    other = replace(base, n_blocks=2, norm_placement="post", norm_kind="rmsnorm", biases=False, width=32)
    comparison = compare(
        {"deep": deep, "shallow": examine(ReferenceTransformer(other), ids), "nothing": empty, "one": tall(1)}
    )

    for form in ("html", "markdown"):
        text = render(comparison, form=form)
        assert all(label in text for label in ("deep", "shallow", "nothing", "one")), form
        assert "could not be drawn" not in text
