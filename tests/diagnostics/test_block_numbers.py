"""A few numbers of every block, against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rheoscope.diagnostics.block_parameters import block_rms, block_share
from rheoscope.diagnostics.block_values import block_values
from rheoscope.diagnostics.coherence_growth import coherence_growth
from rheoscope.diagnostics.comparison import compare
from rheoscope.diagnostics.growth_law import growth_power
from rheoscope.diagnostics.shared_findings import findings_by_variant
from rheoscope.diagnostics.tables import Tables
from rheoscope.probes.anatomy import Anatomy
from rheoscope.probes.recording import Recording

Maker = Callable[..., Any]


def test_a_block_has_its_last_state_and_the_energy_its_skips_carry(made: Maker) -> None:
    model = made(n_blocks=3, steps=(0, 5), state=lambda depth: 1.0 + depth, gradient=lambda depth: 10.0**-depth)
    paths = model.tables["gradient_paths"]
    paths["skip_rms"], paths["branch_rms"] = 2.0, 1.0
    paths.loc[paths["depth"] == 4, ["skip_rms", "branch_rms"]] = [0.0, 3.0]

    found = block_values(Tables(model.recording()))

    assert found["block"].tolist() == [0, 1, 2]
    assert found["state_rms"].tolist() == pytest.approx([3.0, 5.0, 7.0])
    assert found["gradient_rms"].tolist() == pytest.approx([1e-2, 1e-4, 1e-6])
    assert found["skip_share"].tolist() == pytest.approx([8 / 10, 4 / 14, 8 / 10])


def test_a_recording_without_steps_has_no_blocks_to_colour() -> None:
    assert not len(block_values(Tables(Recording.from_tables({}, Anatomy(), {}))))


def parameters(rows: list[tuple[int, str, int, float]]) -> Tables:
    frame = pd.DataFrame(rows, columns=["block", "role", "n", "weight_rms"])
    names = [f"p{index}" for index in range(len(frame))]
    frame = frame.assign(step=0, stack=0, branch="mlp", name=names, gradient_state="value")
    frame["below_epsilon_share"] = frame["weight_rms"] / 10
    return Tables(Recording.from_tables({}, Anatomy(), {"parameters": frame}))


def test_parameters_of_a_block_are_joined_element_by_element() -> None:
    rng = np.random.default_rng(0)
    first, second, bias = rng.standard_normal(30), 3 * rng.standard_normal(10), rng.standard_normal(4)
    rms = [float(np.sqrt((values**2).mean())) for values in (first, second, bias)]
    tables = parameters(
        [(0, "weight", 30, rms[0]), (0, "weight", 10, rms[1]), (0, "bias", 4, rms[2]), (-1, "weight", 9, 99.0)]
    )

    joined = float(np.sqrt((np.concatenate([first, second]) ** 2).mean()))
    assert block_rms(tables, ["weight"])["rms"].tolist() == pytest.approx([joined])
    assert block_rms(tables, ["bias", "norm_bias"])["rms"].tolist() == pytest.approx([rms[2]])
    share = (30 * rms[0] + 10 * rms[1]) / 10 / 40
    assert block_share(tables, ["weight"], "below_epsilon_share")["share"].tolist() == pytest.approx([share])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_growth_is_found(power: float) -> None:
    blocks = pd.DataFrame({"stack": 0, "block": range(8), "rms": [2.0 * (block + 1) ** power for block in range(8)]})

    assert growth_power(blocks) == pytest.approx(power, abs=1e-12)
    assert growth_power(blocks.head(3)) is None
    assert growth_power(pd.concat([blocks, blocks.assign(stack=1)])) is None


def test_a_larger_batch_is_predicted_by_the_smallest_of_its_design() -> None:
    # Tokens' gradients: one shared direction of energy c, and noise of energy 1 - c: mean cosine c.
    rng, width, c = np.random.default_rng(0), 4_000, 0.2

    def measured(n: int) -> pd.DataFrame:
        shared = np.zeros(width)
        shared[0] = np.sqrt(c)
        g = shared + np.sqrt((1 - c) / width) * rng.standard_normal((n, width))
        coherence = float((g.sum(0) ** 2).sum() / (g**2).sum())
        return pd.DataFrame(
            {"step": [0], "n_tokens": [n], "coherence": [coherence], "cosine": [(coherence - 1) / (n - 1)]}
        )

    frames = {"small": measured(64), "large": measured(512), "other": measured(256)}
    found = coherence_growth(frames, {"small": "a", "large": "a", "other": "b"}).set_index("label")

    assert found.loc["large", "predicted"] == pytest.approx(1 + 511 * c, rel=0.03)
    assert found.loc["large", "coherence"] == pytest.approx(found.loc["large", "predicted"], rel=0.03)
    assert found.loc[["small", "other"], "predicted"].isna().all()


def test_findings_stand_beside_the_variants_that_have_them(made: Maker) -> None:
    sound = made(n_blocks=8, steps=(0,)).recording()
    ill = made(n_blocks=8, steps=(0,), gradient=lambda depth: 1e-9 * 4.0**depth).recording()
    comparison = compare({"sound": sound, "ill": ill})

    found = findings_by_variant(comparison).set_index("code")

    worst = {f.code for f in comparison.diagnoses["ill"] if f.severity != "info"}
    assert worst
    assert worst <= set(found.index)
    assert all(found.loc[code, "ill"].startswith(("warning", "error")) for code in worst)
    apart = worst - {f.code for f in comparison.diagnoses["sound"] if f.severity != "info"}
    assert (found.loc[sorted(apart), "sound"] == "").all()
