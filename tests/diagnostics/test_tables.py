"""Quantities derived from a recording, against a few lines of arithmetic."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from rheoscope.diagnostics.frames import block_states, groups, largest, slope
from rheoscope.diagnostics.tables import Tables


def test_micro_batches_join_as_the_root_of_the_mean_square(made: Any) -> None:
    recording = made(1)
    second = recording.tables["activations"].assign(micro_step=1)
    second["rms"] *= 7.0
    recording.tables["activations"] = pd.concat([recording.tables["activations"], second])

    joined = Tables(recording.recording()).state_rms()

    assert joined["rms"].iloc[0] == pytest.approx(((1 + 49) / 2) ** 0.5)


def test_transmission_to_a_state_is_the_product_of_the_gains_above_it(made: Any) -> None:
    recording = made(2)
    for depth, gain in ((1, 0.5), (2, 0.6), (3, 0.7), (4, 0.8)):
        recording.set("gradient_paths", "skip_gain", gain, depth=depth)

    frame = Tables(recording.recording()).skip_transmission()

    expected = [0.5 * 0.6 * 0.7 * 0.8, 0.6 * 0.7 * 0.8, 0.7 * 0.8, 0.8, 1.0]
    assert frame.sort_values("depth")["transmission"].to_list() == pytest.approx(expected)


def test_block_transmission_leaves_the_embeddings_norm_out(made: Any) -> None:
    recording = made(2).set("gradient_paths", "skip_gain", 50.0, depth=1)

    assert Tables(recording.recording()).block_transmission()["transmission"].to_list() == [1.0]


def test_a_missing_gain_makes_the_transmission_below_it_missing(made: Any) -> None:
    recording = made(2).set("gradient_paths", "skip_gain", None, depth=3)

    frame = Tables(recording.recording()).skip_transmission().sort_values("depth")

    assert frame["transmission"].isna().to_list() == [True, True, True, False, False]


def test_block_states_are_the_last_of_each_block_without_the_embedding(made: Any) -> None:
    frame = block_states(Tables(made(3).recording()).state_rms())

    assert frame["depth"].to_list() == [2, 4, 6]


def test_the_share_of_a_bias_is_missing_where_the_output_is_zero(made: Any) -> None:
    recording = made(1, bias=lambda depth: 0.1).set("activations", "rms", 0.0, site="branch_output", depth=1)

    assert Tables(recording.recording()).bias_share()["bias_share"].isna().to_list() == [True, False]


def test_bias_gradients_are_counted_by_energy(made: Any) -> None:
    # Two weights of 64 elements and gradient RMS .001, and a bias of 8 elements and gradient RMS .01.
    recording = made(1)
    bias = recording.tables["parameters"].iloc[0].to_dict() | {
        "name": "b",
        "role": "bias",
        "n": 8,
        "gradient_rms": 0.01,
    }
    recording.tables["parameters"] = pd.concat([recording.tables["parameters"], pd.DataFrame([bias])])

    tables = Tables(recording.recording())

    assert tables.bias_gradient_share()["share"].to_list() == pytest.approx([8e-4 / (8e-4 + 2 * 64e-6)])
    assert tables.has_biases()


def test_a_parameter_without_a_gradient_has_no_share(made: Any) -> None:
    assert len(Tables(made(gradient=None).recording()).bias_gradient_share()) == 0


def test_an_update_ratio_joins_a_blocks_weights_by_energy(made: Any) -> None:
    recording = made(1, update=lambda block: 0.1).set("parameters", "update_rms", 0.0, branch="mlp")

    assert Tables(recording.recording()).update_ratios()["ratio"].to_list() == pytest.approx([0.1 / 2**0.5])


FRAMES = """state_rms gradient_profile paths skip_transmission block_transmission bias_share bias_gradient_share
update_ratios embedding_gradient""".split()


@pytest.mark.parametrize("name", FRAMES)
def test_an_empty_recording_gives_empty_frames_with_their_columns(made: Any, name: str) -> None:
    recording, full = made(), made(bias=lambda depth: 0.1, update=lambda block: 1e-3)
    recording.tables = {}

    frame = getattr(Tables(recording.recording()), name)()

    assert len(frame) == 0
    assert set(frame.columns) == set(getattr(Tables(full.recording()), name)().columns)


def test_the_slope_of_an_exponential_is_its_rate() -> None:
    depths = pd.Series([0.0, 1.0, 2.0]).to_numpy()

    assert slope(depths, 3.0 * 2.0**depths) == pytest.approx(0.6931, abs=1e-4)


def test_a_slope_needs_two_positive_values() -> None:
    depths = pd.Series([0.0, 1.0]).to_numpy()

    assert slope(depths, pd.Series([0.0, 1.0]).to_numpy()) is None


def test_groups_come_in_the_order_of_their_keys() -> None:
    frame = pd.DataFrame({"a": [1, 0, 1], "b": [0, 2, 0]})

    assert [(key, len(rows)) for key, rows in groups(frame, "a", "b")] == [([0, 2], 1), ([1, 0], 2)]


def test_the_largest_of_equals_is_the_first() -> None:
    assert largest(pd.DataFrame({"value": [1.0, 5.0, 5.0], "name": ["x", "y", "z"]}), "value")["name"] == "y"
