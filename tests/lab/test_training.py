"""Training under the probes, and what the probes say of biases behind dropout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.corpus import batches
from rheoscope.lab.experiments import first_run as first_run_module
from rheoscope.lab.experiments.first_run import first_run, reference_loss
from rheoscope.lab.training import train
from rheoscope.lab.transformer import ReferenceTransformer
from torch import Tensor, nn

TINY = Architecture(n_blocks=2, width=16, n_heads=2, context=12)


def test_every_step_is_recorded_and_one_in_so_many_is_sampled(tmp_path: Path) -> None:
    seen: list[int] = []

    recording = train(
        ReferenceTransformer(TINY),
        batches(2, 12),
        reference_loss,
        n_steps=7,
        lr=1e-2,
        folder=tmp_path / "run",
        every=3,
        label="seven steps",
        on_step=seen.append,
    )

    tables = Tables(recording)
    assert (len(tables.steps), tables.sampled_steps, seen) == (7, [0, 3, 6], [1, 2, 3, 4, 5, 6, 7])
    assert recording.manifest["label"] == "seven steps"


def test_the_learning_rate_rises_over_the_warm_up(tmp_path: Path) -> None:
    options = {"n_steps": 4, "lr": 0.4, "warm_up": 2, "folder": tmp_path / "run"}

    recording = train(ReferenceTransformer(TINY), batches(2, 12), reference_loss, **options)  # type: ignore[arg-type]

    assert Tables(recording).steps["lr"].to_list() == pytest.approx([0.2, 0.4, 0.4, 0.4])


def test_a_small_model_learns_bytes(tmp_path: Path) -> None:
    options = {"n_steps": 30, "lr": 1e-2, "folder": tmp_path / "run"}

    recording = train(ReferenceTransformer(TINY), batches(4, 12), reference_loss, **options)  # type: ignore[arg-type]

    losses = Tables(recording).steps["loss"]
    assert losses.iloc[-5:].mean() < losses.iloc[0] - 1


def test_the_bias_share_is_that_of_the_projection_before_dropout(tmp_path: Path) -> None:
    model = ReferenceTransformer(Architecture(n_blocks=2, width=16, n_heads=2, context=12, dropout=0.5))
    expected: dict[tuple[int, str], float] = {}

    def watch(key: tuple[int, str], projection: nn.Linear) -> None:
        def see(module: nn.Module, args: object, output: Tensor) -> None:
            share = projection.bias.detach().square().mean() / output.detach().square().mean()
            expected[key] = float(share)

        projection.register_forward_hook(see)

    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            for kind, projection in (("attention", block.attention.output), ("mlp", block.mlp.down)):  # type: ignore[union-attr]
                projection.bias.fill_(0.01)  # type: ignore[union-attr, operator]
                watch((index, kind), projection)  # type: ignore[arg-type]
    recording = train(model, batches(2, 12), reference_loss, n_steps=1, lr=1e-3, folder=tmp_path / "run")

    shares = Tables(recording).bias_share()
    found = {(row.block, row.branch): row.bias_share for row in shares.itertuples()}
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_first_run_records_a_hugging_face_gpt2(tmp_path: Path) -> None:
    pytest.importorskip("transformers")

    recording = first_run(tmp_path / "run", n_steps=1)

    assert recording.manifest["model"]["class_name"] == "GPT2LMHeadModel"
    assert (recording.anatomy.n_blocks, recording.anatomy.is_complete) == (first_run_module.N_BLOCKS, True)


def test_the_first_run_falls_back_on_the_reference_transformer_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_run_module, "find_spec", lambda name: None)

    recording = first_run(tmp_path / "run", n_steps=1)

    assert recording.manifest["model"]["class_name"] == "ReferenceTransformer"
    assert "transformers is missing" in recording.manifest["label"]
