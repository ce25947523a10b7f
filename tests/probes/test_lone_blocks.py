"""What one block alone does, to rounding: heads without gradient, another rotation, a term of the stream that is no branch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
from rheoscope.diagnostics.diagnosis import Diagnosis, diagnose
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor, nn

IDS = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(0))
HEAD = 8


def made(n_blocks: int = 5, **fields: Any) -> ReferenceTransformer:
    """Return a small reference transformer."""
    shape = {"width": 32, "n_heads": 4, "mlp_width": 64, "vocabulary": 61, "context": 16}
    return ReferenceTransformer(Architecture(n_blocks=n_blocks, **(shape | fields)), seed=0)


def observed(recording: Recording, check: str) -> pd.Series:
    """Return what a check observed, by branch."""
    rows = recording.table("identities")
    rows = rows[rows["check"] == check]
    return pd.Series(rows["observed"].to_numpy(), index=list(zip(rows["block"], rows["branch"], strict=True)))


def alarms(diagnosis: Diagnosis) -> list[tuple[str, str, int | None, str]]:
    """Return the warnings and errors."""
    return [(f.code, f.severity, f.block, f.component) for f in diagnosis if f.severity != "info"]


def silence(head: int) -> Any:
    """Return a hook that takes one head's result away before the last projection."""

    def enter(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        kept = args[0].clone()
        kept[..., head * HEAD : (head + 1) * HEAD] = 0
        return (kept,)

    return enter


@pytest.mark.parametrize("kind", [{}, {"is_parallel": True}, {"activation": "relu"}])
def test_a_head_whose_result_is_thrown_away_is_told_with_its_share(kind: dict[str, Any]) -> None:
    model = made(**kind)
    model.blocks[3].attention.output.register_forward_pre_hook(silence(1))
    recording = examine(model, IDS)
    shares = observed(recording, "silent_heads")
    branch = "parallel" if "is_parallel" in kind else "attention"
    assert shares[3, branch] == 1 / 4
    assert shares.drop([(3, branch)]).eq(0).all()
    assert alarms(diagnose(recording)) == [("head-silent", "warning", 3, branch)]


def test_rotary_embeddings_of_one_base_turn_alike_and_other_positions_turn_nothing() -> None:
    assert observed(examine(made(positions="rotary"), IDS), "rotation").max() < 1e-3
    for positions in ("learned", "alibi", "none"):
        assert observed(examine(made(positions=positions), IDS), "rotation").empty


def test_a_block_that_turns_nothing_is_told_and_the_first_of_a_published_pattern_remarked() -> None:
    for block, severity in ((1, "warning"), (3, "info")):
        model = made(positions="rotary")
        attention = model.blocks[block].attention
        attention.architecture = replace(attention.architecture, positions="none")
        recording = examine(model, IDS)
        assert observed(recording, "rotation")[block, "attention"] == pytest.approx(1, abs=1e-3)
        found = [f for f in diagnose(recording) if f.code == "attention-positions"]
        assert [(f.severity, f.block) for f in found] == [(severity, block)]


@pytest.mark.parametrize("placement", ["pre", "post", "double"])
def test_what_is_added_to_the_stream_and_is_no_branch_is_told_behind_which_add(placement: str) -> None:
    model = made(norm_placement=placement)
    table = torch.randn(12, 32, generator=torch.Generator().manual_seed(1)) * 0.02
    model.blocks[2].register_forward_hook(lambda *args: args[2] + table)
    recording = examine(model, IDS)
    sizes = observed(recording, "stream_shift")
    assert sizes.drop([(2, "mlp")]).max() < 1e-6
    assert sizes[2, "mlp"] > 1e-3
    assert alarms(diagnose(recording)) == [("stream-shifted", "warning", 2, "mlp")]
