"""The active checks are read as what they prove: a sound model proves all, a planted fault is the one place that does not."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
import torch
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.exact import PROVES, by_check, exact_checks
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.anatomy import Anatomy, Branch, Stack
from rheoscope.probes.branch_anatomy import AttentionAnatomy
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording
from torch import Tensor, nn
from torch.nn import functional

N = 6
IDS = torch.randint(4, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def model(**fields: Any) -> ReferenceTransformer:
    given = {"n_blocks": N, "width": 32, "n_heads": 4, "vocabulary": 61, "context": 12, "init": "xavier"} | fields
    return ReferenceTransformer(Architecture(**given), seed=0)


def loss(output: Any, _: Any) -> Tensor:
    return functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())


def checked(made: nn.Module) -> pd.DataFrame:
    return exact_checks(Tables(examine(made, IDS, loss)))


def recording(*rows: dict[str, Any], n: int = N, attention: AttentionAnatomy | None = None) -> Tables:
    """Return the tables of a recording with these rows of identities and ``n`` certified branches of one kind."""
    branches = tuple(
        Branch(0, i, i + 1, "mlp", "pre", "layernorm", ledger_error=1e-8, attention=attention) for i in range(n)
    )
    frame = pd.DataFrame(
        rows, columns=["check", "stack", "block", "branch", "depth", "observed", "expected", "tolerance"]
    )
    return Tables(Recording.from_tables({}, Anatomy((Stack(0, branches),)), {"identities": frame}))


def factors(check: str, values: list[float], tolerance: float) -> Tables:
    rows = ({"check": check, "stack": 0, "block": i, "branch": "mlp", "depth": i + 1, "observed": value, "tolerance": tolerance}
            for i, value in enumerate(values))  # fmt: skip
    return recording(*rows, n=len(values))


@pytest.mark.parametrize("fields", [{}, {"norm_placement": "post"}, {"dropout": 0.1}, {"is_parallel": True}])
def test_a_sound_model_proves_every_check_it_has(fields: dict[str, Any]) -> None:
    rows = checked(model(**fields))

    assert set(rows["state"]) <= {"holds", "own"}
    proved = by_check(rows).set_index("check")["hold"]
    assert {"ledger", "gradient_conservation", "causality", "loss_scale"} <= set(proved[proved > 0].index)


def test_a_backward_that_is_not_that_of_its_forward_is_the_one_place_that_deviates() -> None:
    made = model()
    made.blocks[2].mlp.register_full_backward_hook(lambda module, given, received: tuple(0.5 * g for g in given))

    ill = checked(made).query("state == 'deviates'")

    assert ill[["check", "block", "branch"]].values.tolist() == [["gradient_conservation", 2, "mlp"]]
    assert ill["observed"].iloc[0] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("check", "value", "tolerance", "state"),
    [
        ("gradient_conservation", 1.0199, 0.02, "holds"),
        ("gradient_conservation", 1.0201, 0.02, "deviates"),
        ("causality", 9e-7, 1e-6, "holds"),
        ("causality", 2e-6, 1e-6, "deviates"),
        ("ledger", 9e-6, 1e-5, "holds"),
        ("ledger", 2e-5, 1e-5, "deviates"),
    ],
)
def test_each_identity_has_its_own_tolerance(check: str, value: float, tolerance: float, state: str) -> None:
    usual = {"gradient_conservation": 1.0, "causality": 0.0, "ledger": 0.0}[check]
    rows = [
        {"check": check, "stack": 0, "block": i, "branch": "mlp", "depth": i + 1, "observed": value if i == 2 else usual,
         "tolerance": tolerance}
        for i in range(N)
    ]  # fmt: skip

    found = exact_checks(recording(*rows)).query("check == @check")

    assert found["state"].tolist() == ["holds", "holds", state, "holds", "holds", "holds"]


@pytest.mark.parametrize(("observed", "state"), [(24.2, "holds"), (24.3, "deviates"), (-24.0, "deviates")])
def test_the_tolerance_of_a_summed_loss_is_of_its_number_of_tokens(observed: float, state: str) -> None:
    row = {"check": "loss_scale", "stack": 0, "block": -1, "branch": "output", "observed": observed, "expected": 24.0}

    found = exact_checks(recording({**row, "tolerance": 0.01})).query("check == 'loss_scale'")

    assert found["state"].tolist() == [state]


def test_an_encoder_sees_later_positions_by_design() -> None:
    rows = factors("causality", [0.3] * N, 1e-6)

    assert set(exact_checks(rows).query("check == 'causality'")["state"]) == {"design"}


@pytest.mark.parametrize(
    ("values", "states"),
    [
        ([1.0, 1.0, 1.1, 1.0, 1.0, 1.0], ["holds", "holds", "deviates", "holds", "holds", "holds"]),
        ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], ["own"] * 6),
        ([1.0, 1.0, 2.0], ["own"] * 3),
    ],
)
def test_a_factor_is_claimed_only_where_nearly_all_blocks_share_it(values: list[float], states: list[str]) -> None:
    assert (
        exact_checks(factors("write_scale", values, 0.005)).query("check == 'write_scale'")["state"].tolist() == states
    )


@pytest.mark.parametrize(
    ("qk_norm", "soft_cap", "expected"),
    [
        ("rmsnorm", None, ["holds", "holds", "deviates", "holds", "holds", "holds"]),
        ("none", None, ["own"] * 6),  # without a norm the size of queries and keys is no constant
        ("rmsnorm", 50.0, ["holds", "holds", "deviates", "holds", "holds", "holds"]),  # what a cap bends is bent back
    ],
)
def test_the_attention_is_judged_by_the_measure_that_the_blocks_share(
    qk_norm: str, soft_cap: float | None, expected: list[str]
) -> None:
    own = factors("logit_scale", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.005).identities
    shared = factors("logit_size", [0.5, 0.5, 0.6, 0.5, 0.5, 0.5], 0.005).identities

    rows = pd.concat([own, shared]).drop(columns=["module_path", "note"]).to_dict("records")
    tables = recording(*rows, attention=AttentionAnatomy(qk_norm=qk_norm, soft_cap=soft_cap))

    assert exact_checks(tables).query("check == 'attention_scale'")["state"].tolist() == expected
    told = [(f.code, f.block) for f in diagnose(tables.recording) if f.code == "attention-scale"]
    assert told == ([("attention-scale", 2)] if "deviates" in expected else [])


def test_a_run_proves_its_ledger_alone_and_a_recording_of_nothing_proves_nothing() -> None:
    assert by_check(exact_checks(recording())).to_dict("list")["check"] == ["ledger"]
    empty = exact_checks(Tables(Recording.from_tables({}, Anatomy(), {})))
    assert len(empty) == len(by_check(empty)) == 0


def test_what_deviates_is_also_a_finding() -> None:
    made = model()
    made.blocks[4].attention.register_full_backward_hook(lambda module, given, received: tuple(0 * g for g in given))
    found = examine(made, IDS, loss)

    ill = exact_checks(Tables(found)).query("state == 'deviates'")

    assert set(ill["block"]) == {4}
    assert {(f.code, f.block) for f in diagnose(found) if f.severity == "error"} == {("gradient-detached", 4)}
    assert set(ill["check"]) <= set(PROVES)
