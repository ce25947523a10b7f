"""Hyperparameters beside published models, and bytes between devices, against sums by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
from rheoscope.diagnostics.communication import DEVICES, communication
from rheoscope.diagnostics.diagnosis import diagnose
from rheoscope.diagnostics.hyperparameters import beside_published, hyperparameters, published_models
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.transformer import ReferenceTransformer
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.check_up import examine
from rheoscope.probes.recording import Recording

BASE = Architecture(n_blocks=4, width=64, n_heads=4, vocabulary=61, context=12)
IDS = torch.randint(61, (3, 10), generator=torch.Generator().manual_seed(0))


def check_up(**fields: object) -> Recording:
    return examine(ReferenceTransformer(replace(BASE, **fields), seed=0), IDS)  # type: ignore[arg-type]


def here(recording: Recording) -> dict[str, float]:
    rows = beside_published(Tables(recording))
    return dict(zip(rows["quantity"], rows["here"], strict=True))


def test_the_published_table_agrees_with_itself() -> None:
    models = published_models()

    assert len(models) == 39
    assert models["model"].is_unique
    both = models.dropna(subset=["width", "n_blocks"])
    assert ((both["width"] / both["n_blocks"] - both["aspect"]).abs() <= 0.5).all()
    assert set(models.columns).isdisjoint({"tricks", "prenorm"})
    assert models["dropout"].dropna().between(0, 0.1).all()
    gpt3 = models.set_index("model").loc["GPT3 175B"]
    assert (gpt3["width"], gpt3["n_blocks"], gpt3["aspect"], gpt3["vocabulary"]) == (12288, 96, 128, 50257)


def test_sizes_are_those_that_the_model_was_built_with() -> None:
    found = here(check_up(mlp_width=192, dropout=0.2, vocabulary=128))

    assert found == {"mlp_ratio": 3.0, "aspect": 16.0, "head_ratio": 1.0, "vocabulary": 128.0, "dropout": 0.2}


def test_what_is_outside_is_remarked_on_and_alarms_nobody() -> None:
    found = check_up(mlp_width=640, dropout=0.5)

    remarks = hyperparameters(Tables(found))

    assert {finding.component for finding in remarks} == {"mlp_ratio", "dropout"}
    assert {finding.severity for finding in remarks} == {"info"}
    assert "D_ff / width is 10; usual is 3 to 5" in remarks[0].sentence
    assert diagnose(found).verdict == "PASS"


def test_what_is_usual_is_not_remarked_on() -> None:
    assert hyperparameters(Tables(check_up())) == []


def test_weight_decay_is_that_of_the_last_step() -> None:
    groups = pd.DataFrame({"step": [0, 0, 5, 5], "group": [0, 1, 0, 1], "weight_decay": [0.9, 0.0, 0.2, 0.0]})
    given = check_up()
    tables = {"groups": groups, "activations": given.table("activations")}
    recording = Recording.from_tables(given.manifest, given.anatomy, tables)

    assert here(recording)["weight_decay"] == 0.2
    assert [finding.component for finding in hyperparameters(Tables(recording))] == ["weight_decay"]


@pytest.mark.parametrize(("is_parallel", "adds"), [(False, 2), (True, 1)])
def test_bytes_are_those_of_the_batch_by_hand(is_parallel: bool, adds: int) -> None:
    rows = communication(Tables(check_up(is_parallel=is_parallel)))

    state = 3 * 10 * 64
    forward_and_backward = 2
    assert rows.to_dict("records") == [
        {
            "stack": 0,
            "blocks": "0 to 3",
            "adds": adds,
            "elements": state,
            "all_reduced": adds * forward_and_backward * state * 4,
            "sent_by_each": adds * forward_and_backward * state * 4 * 2 * (DEVICES - 1) // DEVICES,
            "between_blocks": forward_and_backward * state * 4,
        }
    ]


def test_nothing_is_computed_of_sizes_that_are_not_recorded() -> None:
    given = check_up()
    without_type = Recording.from_tables({}, given.anatomy, {"activations": given.table("activations")})
    without_sizes = Recording.from_tables(given.manifest, given.anatomy, {})
    empty = Recording.from_tables({}, Anatomy(), {})

    assert not len(communication(Tables(without_type)))
    assert not len(communication(Tables(without_sizes)))
    assert not len(communication(Tables(empty)))
    assert not len(beside_published(Tables(empty)))
