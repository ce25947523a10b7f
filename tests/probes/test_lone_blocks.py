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
from rheoscope.probes.anatomy import Branch, Stack
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from rheoscope.probes.schema import TABLES
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


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_placement": "double"}, "are normed in different places: reordered in 3 and double in 3 blocks"),
        ({"is_parallel": True}, "Only a part of what 6 of the 6 parallel branches read is normed"),
    ],
)
def test_norms_that_are_missing_in_all_blocks_are_remarked(fields: dict[str, Any], words: str) -> None:
    model = made(n_blocks=6, **fields)
    for index, block in enumerate(model.blocks):
        if index % 2 == 0 or "is_parallel" in fields:
            block.attention_in = nn.Identity()
    told = [f.sentence for f in diagnose(examine(model, IDS)) if f.code == "unusual"]
    assert any(words in sentence for sentence in told), told


def test_a_first_parallel_branch_with_one_norm_of_two_is_told() -> None:
    model = made(is_parallel=True)
    model.blocks[0].attention_in = nn.Identity()
    assert ("norm-missing", "warning", 0, "parallel") in alarms(diagnose(examine(model, IDS)))


@pytest.mark.parametrize("factor", [64.0, 1.05, 0.5])
@pytest.mark.parametrize("fields", [{}, {"qk_norm": True, "norm_placement": "reordered"}, {"is_parallel": True}])
def test_a_projection_that_is_multiplied_before_it_is_read_is_told_also_under_a_norm(
    factor: float, fields: dict[str, Any]
) -> None:
    model = made(**fields)
    model.blocks[0].attention.query.register_forward_hook(lambda *args: factor * args[2])
    recording = examine(model, IDS)
    scales = recording.table("identities").query("check == 'projection_scale'").set_index("module_path")["observed"]
    assert scales.pop("blocks.0.attention.query") == pytest.approx(factor, rel=1e-5)
    assert scales.eq(1).all()
    first = diagnose(recording)[0]
    assert (first.code, first.severity, first.block) == ("projection-scale", "error", 0)
    assert [f.code for f in diagnose(recording)].count("attention-scale") == 0


def test_projections_that_all_blocks_change_alike_are_their_design() -> None:
    model = made()
    for block in model.blocks:
        block.attention.query.register_forward_hook(lambda *args: 2.5 * args[2])
    assert not alarms(diagnose(examine(model, IDS)))


@pytest.mark.parametrize("is_constant", [True, False])
def test_what_is_added_behind_the_last_block_is_told_where_it_is_a_constant_and_else_remarked(
    is_constant: bool,
) -> None:
    model = made()
    assert observed(examine(model, IDS), "stream_end").max() < 1e-6
    table = torch.randn(1 if is_constant else 2, 12, 32, generator=torch.Generator().manual_seed(1)) * 0.02
    model.blocks[4].register_forward_hook(lambda *args: args[2] + table)
    found = [(f.code, f.severity, f.block) for f in diagnose(examine(model, IDS))]
    assert ("stream-shifted", "warning" if is_constant else "info", 4) in found


def test_blocks_that_are_built_otherwise_are_no_siblings_of_a_factor() -> None:
    branches = [
        Branch(0, block, 2 * block + nth + 1, kind, "pre", "layernorm")
        for block in range(5)
        for nth, kind in enumerate(["attention", "mlp"] if block != 2 else ["mlp"])
    ]
    assert [branch.block for branch in Stack(0, tuple(branches)).ordinary] == [0, 0, 1, 1, 3, 3, 4, 4]
    assert Stack(0, tuple(branches[:3])).ordinary == tuple(branches[:3])


def test_a_first_norm_is_missing_unless_the_embedding_ends_in_one() -> None:
    model = made()
    model.blocks[0].attention_in = nn.Identity()
    recording = examine(model, IDS)
    assert recording.anatomy.stacks[0].start_norms == ()
    assert ("norm-missing", "warning", 0, "attention") in alarms(diagnose(recording))


@pytest.mark.parametrize(
    ("block", "size", "severity"), [(5, 0.3, "info"), (5, 2.0, "warning"), (3, 0.3, "warning"), (3, 0.0, "info")]
)
def test_only_what_published_models_do_in_every_nth_block_is_a_remark(block: int, size: float, severity: str) -> None:
    sound = examine(made(positions="rotary", n_blocks=6), IDS)
    tables = {name: sound.table(name) for name in TABLES}
    rows = tables["identities"]
    for check, value in (("rotation", 0.8), ("rotation_size", size)):
        rows.loc[(rows["check"] == check) & (rows["block"] == block), "observed"] = value
    told = diagnose(Recording.from_tables(sound.manifest, sound.anatomy, tables))
    assert [(f.severity, f.block) for f in told if f.code == "attention-positions"] == [(severity, block)]


@pytest.mark.parametrize("fields", [{}, {"norm_placement": "double"}, {"norm_placement": "post"}])
def test_a_write_that_is_no_multiple_of_its_projection_is_told_with_its_share(fields: dict[str, Any]) -> None:
    model = made(**fields)
    sound = observed(examine(model, IDS), "write_rest")
    assert len(sound) == len(model.blocks) * 2
    assert sound.max() < 1e-5

    def without_first(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return torch.cat([0 * output[:, :1], output[:, 1:]], 1)

    model.blocks[3].attention.register_forward_hook(without_first)
    recording = examine(model, IDS)
    shares = observed(recording, "write_rest")
    assert shares.pop((3, "attention")) > 0.01
    assert shares.max() < 1e-5
    assert ("write-changed", "warning", 3, "attention") in alarms(diagnose(recording))


def test_a_sample_that_sees_another_of_its_batch_is_told_and_position_by_position_is_not_confused_with_it() -> None:
    model = made()
    assert observed(examine(model, IDS), "samples").eq(0).all()
    model.blocks[2].mlp.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 0),))
    recording = examine(model, IDS)
    assert observed(recording, "samples")[2, "mlp"] > 1e-3
    assert observed(recording, "samples").drop([(2, "mlp")]).eq(0).all()
    assert observed(recording, "causality").eq(0).all()
    assert alarms(diagnose(recording))[0] == ("samples-mixed", "error", 2, "mlp")


def test_a_batch_of_one_says_nothing_of_other_samples() -> None:
    recording = examine(made(), IDS[:1])
    assert observed(recording, "samples").empty
    assert observed(recording, "causality").eq(0).all()


def test_an_activation_that_is_left_out_of_one_block_is_told() -> None:
    model = made()
    model.blocks[1].mlp.activation = nn.Identity()
    assert ("activation-odd", "warning", 1, "mlp") in alarms(diagnose(examine(model, IDS)))


def test_a_projection_that_gives_something_else_than_its_product_is_told_by_its_share() -> None:
    model = made()
    behind = model.blocks[2].attention.key
    behind.register_forward_hook(lambda *args: torch.cat([args[2][:, :1], args[2][:, :-1]], 1))
    recording = examine(model, IDS)
    rests = recording.table("identities").query("check == 'projection_rest'").set_index("module_path")["observed"]
    assert rests.pop("blocks.2.attention.key") > 0.1
    assert rests.eq(0).all()
    assert ("projection-changed", "warning", 2, "attention") in alarms(diagnose(recording))


def test_a_block_with_the_weights_of_another_is_told_and_blocks_that_all_share_them_are_not() -> None:
    model = made()
    model.blocks[3].mlp = model.blocks[1].mlp
    assert ("weight-shared", "warning", 3, "mlp") in alarms(diagnose(examine(model, IDS)))
    model = made()
    for block in model.blocks:
        block.mlp = model.blocks[0].mlp
    assert "weight-shared" not in {f.code for f in diagnose(examine(model, IDS))}


@pytest.mark.parametrize("is_one_number", [True, False])
def test_a_weight_of_rank_one_is_told_whose_size_is_that_of_its_siblings(is_one_number: bool) -> None:
    model = made(n_blocks=7)
    weight = model.blocks[2].mlp.up.weight
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        one = torch.outer(torch.randn(64, generator=generator), torch.randn(32, generator=generator))
        one = torch.ones_like(one) if is_one_number else one
        weight.copy_(one * weight.square().mean().sqrt() / one.square().mean().sqrt())
    recording = examine(model, IDS)
    ranks = recording.table("identities").query("check == 'stable_rank'").set_index("module_path")["observed"]
    assert ranks["blocks.2.mlp.up.weight"] == pytest.approx(1, abs=1e-3)
    exact = torch.linalg.svdvals(model.blocks[1].mlp.up.weight.detach().double())
    assert ranks["blocks.1.mlp.up.weight"] == pytest.approx(float(exact.square().sum() / exact[0] ** 2), rel=0.15)
    assert ("weight-rank", "warning", 2, "mlp") in alarms(diagnose(recording))
