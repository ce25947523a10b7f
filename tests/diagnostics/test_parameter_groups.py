"""Parameter groups, on runs that were recorded: gains that are decayed, and a block with a learning rate of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rheoscope
import torch
from rheoscope.diagnostics.parameter_groups import decayed_gains, odd_rate
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from torch import nn

TINY = Architecture(n_blocks=6, width=16, n_heads=2, context=12)


def recorded(folder: Path, *groups: tuple[Any, dict[str, float]]) -> Tables:
    """Return two steps under AdamW; each of ``groups`` is which parameters (by name) go apart, and how."""
    model = ReferenceTransformer(TINY, seed=0)
    named = dict(model.named_parameters())
    taken = [{name for name in named if chosen(name)} for chosen, _ in groups]
    rest = [p for name, p in named.items() if not any(name in own for own in taken)]
    apart = [
        {"params": [named[name] for name in own], **options} for own, (_, options) in zip(taken, groups, strict=True)
    ]
    optimizer = torch.optim.AdamW([{"params": rest}, *apart], lr=1e-3, weight_decay=0.0)
    tokens = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))
    with rheoscope.attach(model, optimizer, every=1, folder=folder) as probe:
        for _ in range(2):
            loss = model(tokens[:, :-1], tokens[:, 1:]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(loss)
    return Tables(probe.recording)


GAINS = {
    f"{path}.weight"
    for path, module in ReferenceTransformer(TINY, seed=0).named_modules()
    if isinstance(module, nn.LayerNorm)
}


def test_every_parameter_is_recorded_with_its_group(tmp_path: Path) -> None:
    tables = recorded(tmp_path / "run", (lambda name: name.startswith("blocks.2."), {"lr": 3e-2}))
    groups = tables.parameters.groupby("name")["optimizer_group"].first()

    assert {name for name, group in groups.items() if group == 1} == {
        n for n in groups.index if n.startswith("blocks.2.")
    }
    assert set(groups.unique()) == {0, 1}


def test_one_optimizer_for_all_is_sound(tmp_path: Path) -> None:
    tables = recorded(tmp_path / "run")

    assert decayed_gains(tables) == odd_rate(tables) == []


@pytest.mark.parametrize("rate", [3e-2, 1e-5])
def test_a_block_with_a_rate_of_its_own_is_named(tmp_path: Path, rate: float) -> None:
    (finding,) = odd_rate(recorded(tmp_path / "run", (lambda name: name.startswith("blocks.2."), {"lr": rate})))

    assert (finding.code, finding.severity, finding.block, finding.step) == ("learning-rate-odd", "warning", 2, 0)
    assert (finding.evidence.observed, finding.evidence.expected) == (pytest.approx(rate), pytest.approx(1e-3))


def test_the_last_block_may_be_set_apart_on_purpose(tmp_path: Path) -> None:
    (finding,) = odd_rate(recorded(tmp_path / "run", (lambda name: name.startswith("blocks.5."), {"lr": 1e-2})))

    assert finding.severity == "info"


def test_rates_that_fall_with_depth_are_a_schedule(tmp_path: Path) -> None:
    groups = [
        (lambda name, at=f"blocks.{block}.": name.startswith(at), {"lr": 1e-3 * 0.5 ** (5 - block)})
        for block in range(6)
    ]

    assert odd_rate(recorded(tmp_path / "run", *groups)) == []


def test_gains_that_all_are_decayed_are_a_remark(tmp_path: Path) -> None:
    (finding,) = decayed_gains(recorded(tmp_path / "run", (lambda name: name in GAINS, {"weight_decay": 0.1})))

    assert (finding.severity, finding.block, finding.evidence.observed) == ("info", None, pytest.approx(0.1))
    assert f"{len(GAINS)} of {len(GAINS)} norm gains" in finding.sentence


def test_gains_that_one_block_alone_decays_are_a_warning(tmp_path: Path) -> None:
    chosen = {name for name in GAINS if name.startswith("blocks.4.")}

    (finding,) = decayed_gains(recorded(tmp_path / "run", (lambda name: name in chosen, {"weight_decay": 0.1})))

    assert (finding.code, finding.severity, finding.block) == ("gain-decay", "warning", 4)
    assert finding.module_path in chosen


def test_a_recording_without_groups_is_not_judged(made: Any) -> None:
    tables = Tables(made(update=lambda block: 1e-3).recording())

    assert decayed_gains(tables) == odd_rate(tables) == []
