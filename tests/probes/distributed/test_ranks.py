"""What several ranks record together is what one process records that trains on all of their data."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ranks_at_work import BY_RANKS, CASES, STEPS, train, whole_batch
from ranks_compared import KEYS, differences, ended, started, worked
from rheoscope.probes.recorder import attach
from rheoscope.probes.recording import Recording


def alone(name: str, n_ranks: int, folder: Path) -> Recording:
    """Do in this process what the ranks did."""
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make()
    optimizer = case.optimizer(model.parameters())
    batches = [[whole_batch(case, step, micro, n_ranks) for micro in range(n)] for step, n in enumerate(case.n_micro)]
    with attach(model, optimizer, every=1, folder=folder, strict=True) as probe:
        train(case, model, batches, probe, optimizer)
    return probe.recording


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    worked(2, "compare", folder)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    worked(3, "compare", folder)
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    worked(4, "compare", folder)
    return folder


@pytest.mark.parametrize("name", ["replicated", "accumulated"])
def test_row_10_replicas_record_what_one_process_does(name: str, two: Path, tmp_path: Path) -> None:
    assert differences(Recording.load(two / name), alone(name, 2, tmp_path / "run"), 1e-5) == []


def test_row_18_tensor_parallel_ranks_record_what_one_process_does(two: Path, tmp_path: Path) -> None:
    joint = Recording.load(two / "tensor parallel")
    assert differences(joint, alone("tensor parallel", 2, tmp_path / "run"), 1e-5) == []


def test_row_14_three_ranks_with_uneven_shards_record_what_one_process_does(three: Path, tmp_path: Path) -> None:
    assert differences(Recording.load(three / "sharded"), alone("sharded", 3, tmp_path / "run"), 1e-5) == []


def test_row_15_gradients_of_sharded_parameters_are_there_at_every_step(three: Path) -> None:
    rows = Recording.load(three / "sharded").table("parameters")
    assert set(rows["step"]) == set(range(STEPS))
    assert set(rows["gradient_state"]) == {"value"}
    assert (rows["gradient_rms"] > 0).all()


def test_row_16_gradients_that_are_held_back_while_accumulating_are_read_at_the_step(
    three: Path, tmp_path: Path
) -> None:
    name = "sharded accumulated"
    joint = Recording.load(three / name)
    assert set(joint.table("parameters")["gradient_state"]) == {"value"}
    assert differences(joint, alone(name, 3, tmp_path / "run"), 1e-5) == []


@pytest.mark.parametrize("name", BY_RANKS[4])
def test_four_ranks_on_a_mesh_of_two_dimensions_record_what_one_process_does(
    name: str, four: Path, tmp_path: Path
) -> None:
    assert differences(Recording.load(four / name), alone(name, 4, tmp_path / "run"), 1e-5) == []


def test_parts_of_sequences_are_joined_and_what_does_not_join_is_said(two: Path, tmp_path: Path) -> None:
    joint, single = Recording.load(two / "sequence parallel"), alone("sequence parallel", 2, tmp_path / "run")
    keys = KEYS["activations"]
    a, b = (each.table("activations").set_index(keys).sort_index() for each in (joint, single))
    same = a.index.intersection(b.index)

    assert (
        len(same) == len(a) > 0.75 * len(b)
    )  # some gradients, and the logits, are DTensors in parts that no hook joins
    for column in ("n", "rms", "std", "absmax", "kurtosis"):
        assert np.allclose(a.loc[same, column], b.loc[same, column], rtol=1e-5, atol=0, equal_nan=True)
    assert joint.table("tokens").empty
    assert joint.table("events")["kind"].tolist() == ["not_joined"]
    gains = joint.table("parameters").query("role == 'gain'")
    assert gains["gradient_rms"].isna().all()  # each rank holds a summand of it
    assert gains["weight_rms"].notna().all()


def test_three_ranks_in_bfloat16_record_what_one_process_does_within_its_rounding(three: Path, tmp_path: Path) -> None:
    joint, single = Recording.load(three / "sharded bfloat16"), alone("sharded bfloat16", 3, tmp_path / "run")
    keys = KEYS["activations"]
    a, b = (each.table("activations", steps=[0]).set_index(keys)["rms"].sort_index() for each in (joint, single))

    assert a.index.equals(b.index)
    assert np.allclose(a.xs("forward", level="direction"), b.xs("forward", level="direction"), rtol=0.02)
    assert np.allclose(a.xs("backward", level="direction"), b.xs("backward", level="direction"), rtol=0.1)


@pytest.mark.parametrize(("n_ranks", "name"), [(n, name) for n, names in BY_RANKS.items() for name in names])
def test_training_is_the_same_bit_for_bit_with_and_without_a_probe(
    n_ranks: int, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue({2: "two", 3: "three", 4: "four"}[n_ranks])

    for rank in range(n_ranks):
        assert json.loads((folder / f"bits {rank}.json").read_text())[name]


def test_every_rank_says_what_it_saw_of_its_own_data(two: Path) -> None:
    recording = Recording.load(two / "replicated")

    ranks, steps = recording.table("ranks"), recording.table("steps")

    assert ranks.groupby("step")["rank"].apply(list).tolist() == [[0, 1]] * STEPS
    losses = ranks.pivot(index="step", columns="rank", values="loss")
    assert np.allclose(losses.mean(axis=1), steps["loss"], rtol=1e-12)
    assert np.allclose(losses.min(axis=1), steps["lowest_loss"])
    assert np.allclose(losses.max(axis=1), steps["highest_loss"])
    assert (steps["highest_loss"] > steps["lowest_loss"]).all()
    assert steps["n_ranks"].tolist() == [2] * STEPS
    assert ranks["gradient_rms"].nunique() == len(ranks)  # of each rank's own loss
    weights = ranks.pivot(index="step", columns="rank", values="weight_norm")
    assert weights[0].tolist() == weights[1].tolist()  # replicas
    assert (ranks["nonfinite"] == 0).all()


def test_nothing_is_said_to_be_amiss_where_nothing_is(two: Path, three: Path, four: Path) -> None:
    for folder, names in ((two, BY_RANKS[2]), (three, BY_RANKS[3]), (four, BY_RANKS[4])):
        for name in names:
            events = Recording.load(folder / name).table("events")
            assert set(events["kind"]) <= ({"not_joined"} if name == "sequence parallel" else set())


@pytest.fixture(scope="module")
def behaviour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("behaviour")
    worked(2, "behave", folder)
    return folder


def of(behaviour: Path, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the steps of a recording, and the kinds of its events."""
    recording = Recording.load(behaviour / name)
    return recording.table("steps"), recording.table("events")["kind"].tolist()


def test_a_model_that_is_not_spread_asks_no_other_rank(behaviour: Path) -> None:
    steps, events = of(behaviour, "own")

    assert steps["n_ranks"].tolist() == [1, 1]
    assert events == []
    assert "rank 0 of 2" in Recording.load(behaviour / "own").manifest["not_measured"][-1]


def test_a_recording_is_read_and_refused_where_it_is_written_and_every_rank_says_so(behaviour: Path) -> None:
    first, second = (json.loads((behaviour / f"found {rank}.json").read_text()) for rank in (0, 1))

    assert "writes nothing" in second["recording"]
    assert (first["exists"], second["exists"]) == ("RecordingExistsError", "RecordingError")


def test_a_recording_of_ranks_is_continued(behaviour: Path) -> None:
    steps, events = of(behaviour, "first")

    assert steps["step"].tolist() == [0, 1, 2, 3]
    assert steps["n_ranks"].tolist() == [2] * 4
    assert events == ["resumed"]


def test_what_happens_on_one_rank_is_sampled_on_all(behaviour: Path) -> None:
    steps, events = of(behaviour, "triggered")

    assert sorted(events) == ["nonfinite_loss", "triggered"]  # of a loss that is NaN on rank 1 alone
    first, second, third = np.flatnonzero(steps["is_sampled"]).tolist()
    assert first == 0
    assert third == second + 1 >= 7  # said at step 4 or later, when it has arrived; known to all two steps on
    assert steps["n_ranks"].tolist() == [2] * 11


def test_ranks_with_different_schedules_say_so_and_go_on(behaviour: Path) -> None:
    steps, events = of(behaviour, "at odds")

    assert steps["n_ranks"].tolist() == [2, 1, 2, 1]
    assert events == ["ranks_disagree"]


def test_a_micro_batch_that_one_rank_has_counts_once(behaviour: Path) -> None:
    activations = Recording.load(behaviour / "uneven").table("activations")

    # Biases are rows of micro-batch 0 alone.
    n = activations[activations["site"] != "bias"].groupby(["step", "micro_step"])["n"].sum()

    assert n.tolist() == [2 * n[0, 1], n[0, 1]] * 2


def test_a_rank_on_which_discovery_fails_takes_the_anatomy_of_another(behaviour: Path) -> None:
    steps, events = of(behaviour, "one finds")

    assert steps["n_ranks"].tolist() == [2, 2]
    assert events == []
    steps, events = of(behaviour, "nobody finds")
    assert steps["n_ranks"].tolist() == [2] * 4
    assert steps["loss"].tolist() == [1.0] * 4
    assert events == ["fault"]


def test_ranks_with_the_same_data_are_told(behaviour: Path) -> None:
    assert of(behaviour, "same")[1] == ["same_batch"]


def test_a_probe_on_the_first_rank_alone_records_that_rank(behaviour: Path) -> None:
    steps, events = of(behaviour, "first alone")

    assert steps["n_ranks"].tolist() == [1]
    assert events == ["ranks_lost"]


def test_a_rank_that_closes_its_probe_leaves_the_others_theirs(behaviour: Path) -> None:
    went_on_alone(behaviour, "closes")


def test_row_17_a_rank_that_dies_hangs_nobody_and_the_recording_goes_on(tmp_path: Path) -> None:
    start = time.monotonic()
    codes = [code for code, _ in ended(started(2, "dies", tmp_path))]

    assert codes == [0, 1]
    assert time.monotonic() - start < 40
    went_on_alone(tmp_path, "dies")


def test_row_17_a_rank_that_raises_ends_training_and_the_recording_opens(tmp_path: Path) -> None:
    start = time.monotonic()
    codes = [code for code, _ in ended(started(2, "raises", tmp_path))]

    assert codes == [1, 1]  # a gradient that is waited for does not come
    assert time.monotonic() - start < 40
    recording = Recording.load(tmp_path / "raises")
    assert recording.manifest["status"] == "closed"
    assert recording.table("steps")["step"].tolist() == [0, 1, 2, 3, 4]
    assert recording.table("steps")["n_ranks"].iloc[0] == 2
    assert "interrupted" in recording.table("events")["kind"].tolist()


def went_on_alone(folder: Path, how: str) -> None:
    """Check that the first rank trained and recorded to the end, the last steps by itself."""
    assert (folder / f"{how} went on").read_text() == "7"
    recording = Recording.load(folder / how)
    steps = recording.table("steps")
    assert recording.manifest["status"] == "closed"
    assert steps["step"].tolist() == list(range(8))
    assert (steps["n_ranks"].iloc[0], steps["n_ranks"].iloc[-1]) == (2, 1)
    assert recording.table("events")["kind"].tolist() == ["ranks_lost"]
    assert set(recording.table("activations")["step"]) == set(range(8))
