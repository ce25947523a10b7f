"""What a 16-bit stream rounds away is what the add lost, in float64; what cannot be known is not given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracles import NanoGPT, batch_of, loss_of
from rheoscope.probes.recorder import attach
from torch import Tensor, nn


def shares(model: nn.Module, folder: Path) -> list[float]:
    """Return rounded_share of every write, by depth."""
    with attach(model.train(), every=1, folder=folder, strict=True) as probe:
        loss_of(model, batch_of(model)).backward()
        probe.step()
    rows = probe.recording.table("activations")
    assert rows.loc[rows["site"] != "write", "rounded_share"].isna().all()
    chosen = rows[(rows["site"] == "write") & (rows["direction"] == "forward")].sort_values("depth")
    return [float(value) for value in chosen["rounded_share"]]


def lost(model: NanoGPT) -> list[float]:
    """Return the same from the adds themselves, redone in float64."""
    found, seen = [], {}

    def keep(name: str) -> object:
        return lambda module, args, output: seen.__setitem__(name, output.detach().double())

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states.append(args[0].detach().double())

    states: list[Tensor] = []
    handles = [model.norm.register_forward_pre_hook(enter)]
    for number, block in enumerate(model.blocks):
        handles += [block.norm_1.register_forward_pre_hook(enter), block.norm_2.register_forward_pre_hook(enter)]
        handles += [block.attention.register_forward_hook(keep(f"{number}a"))]
        handles += [block.mlp.register_forward_hook(keep(f"{number}m"))]
    loss_of(model, batch_of(model))
    for handle in handles:
        handle.remove()
    writes = [seen[f"{number}{kind}"] for number in range(len(model.blocks)) for kind in "am"]
    for before, write, after in zip(states, writes, states[1:], strict=False):
        error = after - (before + write)
        found.append(float(error.square().sum() / write.square().sum()))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_the_share_rounded_away_is_that_of_the_add_in_float64(dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    model = NanoGPT().train()
    with torch.no_grad():
        model.tokens.weight *= size  # a large stream loses more of each write
    model.to(dtype)
    expected = lost(model)

    found = shares(model, tmp_path / "run")

    assert len(expected) == 4
    assert found == pytest.approx(expected, rel=1e-3)
    assert all(value > 0 for value in found)
    assert max(found) > (1e-3 if size > 1 and dtype == torch.bfloat16 else 1e-9)


def test_a_stream_in_float32_is_not_measured(tmp_path: Path) -> None:
    found = shares(NanoGPT(), tmp_path / "run")

    assert len(found) == 4
    assert all(value != value for value in found)


def test_an_operand_that_was_written_into_is_not_believed(tmp_path: Path) -> None:
    inplace, plain = NanoGPT("inplace").to(torch.bfloat16), NanoGPT("pre").to(torch.bfloat16)
    plain.load_state_dict(inplace.state_dict())

    found, expected = shares(inplace, tmp_path / "run"), shares(plain, tmp_path / "plain")

    # x += write overwrites the skip operand before the sum is seen; between two branches hooks see a copy that stays.
    assert [value == value for value in found] == [False, True, False, True]
    assert found[1::2] == pytest.approx(expected[1::2], rel=1e-5)
