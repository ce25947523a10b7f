"""Experiments are listed, their parts measure what they say, and what is exact or fast holds as published."""

from __future__ import annotations

import math
from concurrent.futures import Executor, Future
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rheoscope.command_line import app
from rheoscope.diagnostics.tables import Tables
from rheoscope.lab import run as runs
from rheoscope.lab import sweep as sweeps
from rheoscope.lab.architecture import Architecture
from rheoscope.lab.design_choice import as_large_as, n_parameters
from rheoscope.lab.experiment import Setting
from rheoscope.lab.experiments import NAMES, experiment
from rheoscope.lab.experiments.activations import FUNCTIONS, bottom, normal_share_below, share_beyond
from rheoscope.lab.experiments.aspect_ratio import of_depth
from rheoscope.lab.experiments.bias_terms import at_init as of_biases
from rheoscope.lab.experiments.depth_and_init import AT_INIT, EXPECTED, SCALINGS
from rheoscope.lab.experiments.mlp_ratio import of_ratio
from rheoscope.lab.experiments.norm_kind import error_by_hand
from rheoscope.lab.experiments.parallel import AT_INIT as PARALLEL
from rheoscope.lab.experiments.position_kinds import KINDS, deviation, repeated_logits
from rheoscope.lab.factorial import effects
from rheoscope.lab.learning_rates import gaps, increases, rows_at_best
from rheoscope.lab.measured import at_init, kept, stream
from rheoscope.lab.run import Run, carried_out, held_out_loss
from rheoscope.lab.tasks import HELD_OUT, task
from rheoscope.lab.transformer import ReferenceTransformer
from torch.nn import functional
from typer.testing import CliRunner

SMALL = Architecture(2, 64, 4, vocabulary=64, context=48, embedding_std=1.0)
TINY = Architecture(2, 16, 2, vocabulary=17, context=8)
# Experiments that only train, and say what came of it.
TABLES = ("glu", "mlp-ratio", "aspect", "repeated-data", "regularisation", "embedding-scale")


class Here(Executor):
    """Carries out what it is given at once, in this process."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def test_the_list_names_every_experiment_with_its_question_and_its_time() -> None:
    printed = CliRunner().invoke(app, ["lab", "list"], env={"COLUMNS": "400"}).output

    for name in NAMES:
        found = experiment(name)
        assert found.name == name
        assert name in printed
        assert found.question.endswith("?")
        assert found.minutes[1] <= 3.0
        assert found.minutes[0] <= 20.0


@pytest.mark.parametrize("name", TABLES)
def test_an_experiment_that_only_trains_says_a_claim_and_a_row_for_every_variant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(run: Run, folder: Path) -> dict[str, Any]:
        return carried_out(replace(run, n_steps=2, batch=2, n_batches=min(run.n_batches, 2)), folder)

    monkeypatch.setattr(sweeps, "carried_out", short)
    monkeypatch.setattr(runs, "N_HELD_OUT", 1)

    result = experiment(name).carry_out(Setting(tmp_path, is_quick=True, seeds=(0,), executor=Here()))

    assert not result.variants["failed"].any()
    assert result.variants["label"].is_unique
    assert all(claim.measured.n for claim in result.claims)
    assert set(result.curves.columns) == {"chart", "series", "x", "y", "low", "high"}
    assert result.curves["y"].notna().all()


def test_effects_of_two_factors_are_differences_and_a_difference_of_differences() -> None:
    cells = {(False, False): [1.0, 2.0], (True, False): [4.0, 5.5], (False, True): [2.0, 2.0], (True, True): [9.0, 9.0]}

    found = effects(cells, ("a", "b"))

    assert found["a",].mean == pytest.approx((((4 - 1) + (9 - 2)) / 2 + ((5.5 - 2) + (9 - 2)) / 2) / 2)
    assert found["b",].mean == pytest.approx((((2 - 1) + (9 - 4)) / 2 + ((2 - 2) + (9 - 5.5)) / 2) / 2)
    assert found["a", "b"].mean == pytest.approx((((9 - 2) - (4 - 1)) + ((9 - 2) - (5.5 - 2))) / 2)
    assert found["a", "b"].n == 2


def test_effects_of_three_factors_are_the_coefficients_of_a_linear_model() -> None:
    generator = np.random.default_rng(0)
    cells = {levels: [float(generator.normal())] for levels in product((False, True), repeat=3)}
    # With levels of -1/2 and 1/2 the coefficients of products are the interactions.
    half = np.array([[level - 0.5 for level in levels] for levels in cells])
    columns = [half[:, list(chosen)].prod(1) for chosen in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))]
    design = np.stack([np.ones(len(cells)), *columns], axis=1)
    expected = np.linalg.solve(design, np.array([values[0] for values in cells.values()]))[1:]

    found = effects(cells, ("a", "b", "c"))

    assert [each.mean for each in found.values()] == pytest.approx(list(expected))


def test_biases_that_can_do_nothing_have_no_gradient() -> None:
    found = of_biases(0)

    assert found["key"] < 1e-12  # softmax(z + c) = softmax(z)
    assert found["key, rotary"] > 1e-3
    assert found["mean, layernorm"] < 1e-12  # LayerNorm(x + c) = LayerNorm(x)
    assert found["mean, rmsnorm"] > 1e-3
    assert found["outputs"] == 0.0  # they start at 0
    assert found["ratio, zipf"] > 1.5 * found["ratio, uniform"]
    assert found["ratio over predicted, zipf"] == pytest.approx(1.0, abs=0.05)


def test_the_dips_of_gelu_and_silu_lie_where_they_are_published() -> None:
    assert bottom(FUNCTIONS["gelu"]) == pytest.approx((-0.751790, -0.169971), abs=3e-6)
    assert bottom(FUNCTIONS["silu"]) == pytest.approx((-1.278465, -0.278465), abs=1e-6)
    assert normal_share_below(-0.751790) == pytest.approx(0.2261, abs=5e-5)


def test_a_fifth_of_unit_gaussian_pre_activations_lies_beyond_the_dip_of_gelu() -> None:
    design = replace(SMALL, activation="gelu", init="lecun")

    shares = [share_beyond(design, seed, -0.751790) for seed in range(5)]

    assert np.mean(shares) == pytest.approx(0.2261, rel=0.05)


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_norms_by_hand_are_torchs(kind: str) -> None:
    assert error_by_hand(kind, 0) < 1e-12


def test_logits_of_one_repeated_token_depend_on_distances_with_rotary_and_alibi_alone() -> None:
    found = {
        label: deviation(repeated_logits(replace(SMALL, positions=kind), 0))
        for label, kind in KINDS.items()
        if label != "none"
    }

    assert found["rotary"] < 1e-12
    assert found["ALiBi"] < 1e-12
    assert found["learned"] > 0.5
    assert found["sinusoidal"] > 0.1


def test_deviation_is_the_root_of_the_variance_within_distances() -> None:
    logits = torch.tensor([[0.0, 0.0], [5.0, 2.0]])  # distance 0: 0 and 2; distance 1: 5

    mean = 7 / 3
    whole = mean**2 + (5 - mean) ** 2 + (2 - mean) ** 2
    assert deviation(logits) == pytest.approx(math.sqrt(2 / whole))


def test_designs_of_other_shapes_have_as_many_parameters() -> None:
    wanted = n_parameters(SMALL, of_blocks=True)

    gated = as_large_as(SMALL, replace(SMALL, activation="swiglu"))
    shared = as_large_as(SMALL, replace(SMALL, n_key_value_heads=1))
    two_heads = replace(SMALL, n_heads=2)
    ratios = {ratio: of_ratio(two_heads, ratio) for ratio in (0.5, 2.0, 8.0)}
    depths = [of_depth(two_heads, depth) for depth in (1, 2, 4, 8)]

    for design in (gated, shared):
        assert n_parameters(design, of_blocks=True) == pytest.approx(wanted, rel=0.002)
    for design in (*ratios.values(), *depths):
        assert n_parameters(design, of_blocks=True) == pytest.approx(wanted, rel=0.05)
    for ratio, design in ratios.items():
        assert design.hidden / design.width == pytest.approx(ratio)
    assert [design.n_blocks for design in depths] == [1, 2, 4, 8]


def test_what_a_projection_read_and_gave_explains_its_gradient() -> None:
    model = ReferenceTransformer(TINY, seed=0).double()
    projections = kept(model, "mlp.up")
    batch = next(task("uniform")(17, 3, 8, 0))

    model(batch[:, :-1], batch[:, 1:]).loss.backward()

    for each in projections:
        assert each.given.grad is not None
        by_hand = each.given.grad.flatten(0, 1).mT @ each.read.flatten(0, 1)
        torch.testing.assert_close(each.projection.get_parameter("weight").grad, by_hand)


def test_the_stream_walked_by_hand_is_what_the_check_up_records() -> None:
    design = Architecture(3, 64, 4, vocabulary=100, context=16, positions="none")

    states, gradients = stream(design, 0)

    tables = Tables(at_init(design, 0))
    of_blocks = tables.state_rms().groupby("block")["rms"].last()
    assert states == pytest.approx(list(of_blocks), rel=1e-5)
    backward = tables.gradient_profile().sort_values("depth").groupby("block")["rms"].last()
    assert gradients == pytest.approx(list(backward), rel=1e-4)


def test_parallel_branches_give_the_stream_and_the_gradients_of_serial_ones_at_init() -> None:
    (serial, g), (parallel, h) = (stream(replace(PARALLEL, is_parallel=each), 0) for each in (False, True))

    assert parallel[-1] == pytest.approx(serial[-1], rel=0.05)
    assert h[0] / h[-1] == pytest.approx(g[0] / g[-1], rel=0.1)


@pytest.mark.parametrize("label", list(SCALINGS))
def test_depth_scaled_inits_follow_their_closed_forms_at_24_blocks(label: str) -> None:
    found = [stream(replace(AT_INIT, **SCALINGS[label]), seed) for seed in range(3)]

    size, ratio = EXPECTED[label]
    assert np.mean([states[-1] for states, _ in found]) == pytest.approx(size, rel=0.05)
    ratios = [gradients[0] / gradients[-1] for _, gradients in found]
    assert np.mean(ratios) == pytest.approx(ratio, rel=0.05 if label == "DeepNorm" else 0.35)


def test_held_out_loss_is_without_dropout_and_leaves_the_mode_alone() -> None:
    run = Run(replace(TINY, dropout=0.5, vocabulary=256), 1e-3, task="text", batch=2)
    model = ReferenceTransformer(run.architecture, seed=0).train()

    found = held_out_loss(run, model)

    assert model.training
    stream_ = task("text")(256, 2, 8, HELD_OUT)
    model.eval()
    batches = [next(stream_) for _ in range(runs.N_HELD_OUT)]
    with torch.no_grad():
        losses = [functional.cross_entropy(model(b[:, :-1]).logits.flatten(0, 1), b[:, 1:].flatten()) for b in batches]
    assert found == pytest.approx(float(sum(losses)) / len(losses), rel=1e-6)


def test_held_out_text_is_never_trained_on() -> None:
    kept_apart = next(task("text")(256, 4, 200, HELD_OUT))
    trained_on = task("text")(256, 256, 200, 0)

    seen = {tuple(row[k : k + 50].tolist()) for _ in range(4) for row in next(trained_on) for k in range(0, 150, 50)}
    assert not seen & {tuple(row[k : k + 50].tolist()) for row in kept_apart for k in range(150)}


def test_gaps_and_increases_compare_each_variant_at_its_own_best_rate() -> None:
    rows = [
        ("a", 0.1, 0, 2.0, 2.2), ("a", 0.1, 1, 2.2, 2.4), ("a", 0.2, 0, 3.0, 3.0), ("a", 0.2, 1, 3.0, 3.0),
        ("b", 0.1, 0, 4.0, 4.0), ("b", 0.1, 1, 4.0, 4.0), ("b", 0.2, 0, 1.0, 1.1), ("b", 0.2, 1, 1.0, 1.2),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["label", "lr", "seed", "last_loss", "held_out_loss"]).assign(error="")

    assert gaps(frame, "a", "b") == pytest.approx([1.0, 1.2])
    assert gaps(frame, "a", "b", "held_out_loss") == pytest.approx([1.1, 1.2])
    assert increases(frame, "b")["a"] == pytest.approx([100 * (2.2 / 1.1 - 1), 100 * (2.4 / 1.2 - 1)])
    assert rows_at_best(frame, "b")["lr"].unique().tolist() == [0.2]
    failed = frame.assign(error=frame["label"].map({"a": "", "b": "RuntimeError"}))
    assert gaps(failed, "a", "b") == []
